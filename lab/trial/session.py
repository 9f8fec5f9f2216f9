# SPDX-License-Identifier: GPL-2.0-or-later
"""A warm guest with its observer, which serves one trial after another."""

import contextlib
import functools
import time
from collections.abc import Iterable
from typing import Final

import msgspec
import psutil

from lab import __version__
from lab.build.images import ImageSet
from lab.errors import DeadlineError, EvidenceError, GuestError, GuestGone, HostError
from lab.expected.expect import expect_still
from lab.guest.agent import Step
from lab.guest.machine import Machine
from lab.host.deadline import Deadline
from lab.judge import judge
from lab.judge.titles import cut_report
from lab.kernelimage.hold_places import find_holds
from lab.kernelimage.landmarks import LandmarkSet, find_nmi_handlers, make_symboliser
from lab.kernelimage.vmlinux import Kernel
from lab.mechanisms.base import find_base
from lab.mechanisms.mechanism import Expectation, Mechanism, is_play_dead
from lab.mechanisms.table import find_mechanism, mechanisms_of
from lab.microcode.update import digest_words, firmware_name, make_update
from lab.model.boot import Boot
from lab.model.engine import EFFECTIVE, Engine
from lab.model.evidence import (
    SCHEMA_VERSION,
    Ending,
    EventKind,
    Evidence,
    GuestEvidence,
    InjectionLog,
    ObserverEvidence,
    RendezvousState,
    Returned,
    Stall,
    Timings,
    VcpuRunning,
)
from lab.model.hold import Hold
from lab.model.plan import Plan
from lab.model.scenario import Scenario, Siblings
from lab.model.verdict import Outcome
from lab.observer.link import ObserverLink, Processor
from lab.observer.reader import Symbolise
from lab.trial import guest_files, guest_side
from lab.trial.injection import InjectionThread
from lab.trial.schedule import Overhead
from lab.trial.sentinels import SETTLE_BOUND_S, SETTLE_STEP_S, send_sentinels
from lab.trial.siblings import SiblingSwitch
from lab.trial.stall import ask_stalled

#: A load takes a tenth of a second; the kernel's own limits end one that hangs after a few.
TRIAL_S: Final = 30.0
#: What a load takes beside its longest window, before any has been seen.
FIRST_OVERHEAD: Final = Overhead(before_us=30_000)
#: An NMI that is pending enters at the vCPU's next block; quiet for longer than a time slice of the host means none is.
SETTLED_S: Final = 0.03
CONSOLE_TAIL_LINES: Final = 60
#: Of a guest's run folder, what helps a person who looks into a trial.
RUN_FILES: Final = ("console.log", "qemu.log", "observer.shm", "landmarks")
#: The observer's file is the largest; a guest's console is bounded where it is written.
MAX_RUN_FILE_BYTES: Final = 64 * 1024 * 1024
#: More than the blocks of all loads' code; what is kept of each is a short text.
MAX_SYMBOLS: Final = 65_536
_PPM: Final = 1_000_000
_NS_PER_US: Final = 1_000


class Kept(msgspec.Struct, frozen=True):
    """A trial's evidence, and raw files to keep beside it."""

    evidence: Evidence
    raw: dict[str, bytes]


class Session:
    """One running guest. Made by :func:`open_session`; to be used by one thread."""

    def __init__(
        self,
        *,
        images: ImageSet,
        kernel: Kernel,
        landmarks: LandmarkSet,
        boot: Boot,
        machine: Machine,
        link: ObserverLink,
        deadline: Deadline,
        engine: Processor | None,
    ) -> None:
        self.topology = boot.topology
        self.machine = machine
        self.base = find_base(boot.base)
        #: Whether the kernel can be told at run time to insist on least revisions; since Linux 6.18 only a boot can.
        self.switches_min_revision = self.base.has_min_revision and kernel.has_object(guest_files.MINREV_PARAMETER)
        self._siblings = SiblingSwitch(machine.shell, boot.topology)
        self._kernel = kernel
        self._landmarks = landmarks
        symbolise = make_symboliser(kernel, mechanisms_of(boot.base))
        # A load's cover is thousands of blocks, nearly all of them those of the load before.
        self._symbolise: Symbolise = functools.lru_cache(MAX_SYMBOLS)(symbolise)
        self._link = link
        self._trials = 0
        self._stalled = False
        #: How many MiB the memory of this guest may have as it is kept when it stops answering; 0 to keep none.
        self.dump_mib = 0
        self._overhead: dict[tuple[str, Siblings], Overhead] = {}
        guest_side.prepare_guest(machine.shell, machine.agent, boot, images.kernel_release, deadline)
        self._images = msgspec.structs.replace(
            images.describe(machine.qemu_version),
            build_id=kernel.build_id,
            guest_build_id=guest_side.read_guest_build_id(machine.agent, deadline),
        )
        self._signature, self._platform = guest_side.read_signature(machine.agent, deadline)
        #: The newest that the observer's engine has given any core, 0 for none.
        self.core_revision = 0
        #: Whether updates take effect here, by the kernel or by the observer.
        self.has_engine = (self.base.engine and not boot.outside) or engine is not None
        if engine is not None and (self._signature, self._platform) != (engine.signature, engine.platforms):
            raise GuestError(
                f"the guest's CPU is {self._signature:#x} with platform mask {self._platform:#x}:"
                f" the observer answers for {engine.signature:#x} with {engine.platforms:#x}"
            )
        self._threads = machine.vcpu_threads(deadline)

    @property
    def usable(self) -> bool:
        """Whether the guest can serve another trial: it has not ended, and was not stopped since it did not answer."""
        return self.machine.ending is None and not self._stalled

    def arm_observer(
        self,
        mechanism: Mechanism,
        stretch_us: tuple[int, ...],
        holds: tuple[Hold, ...] = (),
        *,
        cover: bool = False,
        engine: Engine = Engine.TAKES,
    ) -> ObserverLink:
        """Have the observer record all from now on as a trial of its own, and return the link by which that is ended.

        :param stretch_us: how long to hold each core's window open
        :param cover: note every block that the load's vCPUs begin
        :param engine: how an engine in the observer treats updates meanwhile
        :raise UsageError: a hold has no place in this kernel
        """
        found = find_holds(self._kernel, mechanism, holds)
        self._trials += 1
        self._link.arm(
            self._trials,
            mechanism.bit,
            stretch_us,
            stalled=mechanism.stalled,
            holds=found,
            cover=cover,
            engine=engine,
        )
        return self._link

    def collect_observer(self) -> ObserverEvidence:
        """Return what the observer saw since it was armed last."""
        seen = self._link.collect(self._symbolise)
        return msgspec.structs.replace(seen, handlers_watched=bool(find_nmi_handlers(self._kernel)))

    def all_play_dead(self, places: Iterable[int]) -> bool:
        """Say whether all of some addresses are where offline threads wait."""
        return all(is_play_dead(self._symbolise(pc)) for pc in places)

    def run_trial(self, scenario: Scenario, plan: Plan, keep_files: bool = False, *, cover: bool = False) -> Kept:
        """Do one late load under one plan, and return what all witnesses saw; how it ended is part of that.

        :param keep_files: add the files of the guest's run folder, since its boot
        :param cover: note every block that the load's vCPUs begin
        :raise UsageError: a hold of the plan has no place in this kernel
        """
        kind = (scenario.mechanism, scenario.siblings)
        if kind not in self._overhead:
            # The first load of its kind runs code that QEMU has never translated, and takes many times as long: a
            # plan's times would miss it. One that is broken without any NMI is the trial's evidence all the same,
            # unless it was to be expected: then the plan itself shows it better.
            self._overhead[kind] = FIRST_OVERHEAD
            stretch_us = (0,) * self.topology.total_cores
            still = Plan(seed=plan.seed, stretch_us=stretch_us, injections=(), first_load=True)
            first = self._run_load(scenario, still)
            ended_well = first.evidence.ending is Ending.COMPLETE
            surprising = expect_still(scenario).kind is not Expectation.CAUGHT
            if not ended_well or (surprising and judge(first.evidence).outcome is Outcome.FAIL):
                return self._add_files(first) if keep_files else first
        kept = self._run_load(scenario, plan, cover=cover)
        return self._add_files(kept) if keep_files else kept

    def _run_load(self, scenario: Scenario, plan: Plan, *, cover: bool = False) -> Kept:
        trial = _Trial(self, scenario, plan, cover=cover)
        try:
            trial.run()
            ending, reason = Ending.COMPLETE, ""
        except DeadlineError as error:
            ending, reason = Ending.DEADLINE, str(error)
        except (GuestError, EvidenceError, HostError) as error:
            ending, reason = Ending.LAB, str(error)
        end = self.machine.ending
        if end is not None:
            self.machine.wait_settled(Deadline.after(SETTLE_BOUND_S))
            end = self.machine.ending or end
            ending, reason = end.kind, end.reason
        elif ending is Ending.DEADLINE:
            self._stalled = True
            trial.ask()
        return trial.collect(ending, reason)

    def _add_files(self, kept: Kept) -> Kept:
        files = {}
        for name in RUN_FILES:
            with contextlib.suppress(OSError), open(self.machine.run_dir / name, "rb") as source:
                files[f"guest-{name}"] = source.read(MAX_RUN_FILE_BYTES)
        return Kept(kept.evidence, {**kept.raw, **files})


class _Trial:
    """The state of one trial while it runs."""

    def __init__(self, session: Session, scenario: Scenario, plan: Plan, *, cover: bool) -> None:
        self.session = session
        self.cover = cover
        self.machine = session.machine
        self.agent = session.machine.agent
        self.link = session._link
        self.scenario = scenario
        self.plan = plan
        self.deadline = Deadline.after(TRIAL_S)
        self.console_mark = self.machine.console.mark()
        self.raw: dict[str, bytes] = {}
        self.armed = False
        self.injections: InjectionLog | None = None
        self.guest: GuestEvidence | None = None
        self.stall: Stall | None = None
        self.command_ns = 0
        self.returned_ns = 0
        self.ran_before: tuple[VcpuRunning, ...] = ()
        self.running: tuple[VcpuRunning, ...] = ()
        self.cpu_before = psutil.cpu_times()

    def run(self) -> None:
        """Do the load and ask the guest about it."""
        session, topology = self.session, self.session.topology
        session._siblings.put(not self.scenario.offline_threads, self.deadline)
        before = guest_files.take_readings(self.agent, topology, session.base, self.deadline)
        session._siblings.compare(before.online)
        # A core may have another revision than its kernel knows of.
        target = guest_files.find_next_revision((*before.revisions, session.core_revision))
        update, steps = self._make_update(target, max(before.revisions))
        mechanism = find_mechanism(self.scenario.mechanism)
        dmesg_before = guest_files.choose_mechanism(self.agent, mechanism, session.base, self.deadline, steps)
        self.ran_before = self.machine.read_schedstat(session._threads)
        session.arm_observer(
            mechanism, self.plan.stretch_us, self.plan.holds, cover=self.cover, engine=self.scenario.engine
        )
        self.armed = True
        try:
            load_errno = self._load()
            self._settle()
            self._send_sentinels()
            # Where no update takes effect, a second write begins a second load, which would show nothing new.
            takes = session.has_engine and self.scenario.engine in EFFECTIVE
            if takes:
                repeat_errno, after = guest_files.load_again(self.agent, topology, session.base, self.deadline)
            else:
                repeat_errno = -1
                after = guest_files.take_readings(self.agent, topology, session.base, self.deadline)
            self._wait_for_rest()
            returned = self._return_siblings()
        finally:
            self.link.disarm()
            self._read_running()
        dmesg, raw = guest_files.read_log_and_state(self.agent, session.base, self.deadline)
        self.raw |= raw
        for name, data in before.raw.items():
            self.raw[f"before-{name}"] = data
        for name, data in after.raw.items():
            self.raw[f"after-{name}"] = data
        self.guest = GuestEvidence(
            target_revision=target,
            load_errno=load_errno,
            repeat_errno=repeat_errno,
            online=before.online,
            state=self._read_state(),
            ledger_before=before.ledger,
            ledger_after=after.ledger,
            revisions_before=before.revisions,
            revisions_after=after.revisions,
            nmis_before=before.nmis,
            nmis_after=after.nmis,
            dmesg=dmesg,
            dmesg_before=dmesg_before,
            returned=returned,
            target_digest=digest_words(update),
        )
        if self.scenario.boot.monitor:
            # A thread parked in MWAIT never sleeps under an emulator of several CPUs: it would take a host CPU until
            # the guest's next trial.
            session._siblings.put(True, self.deadline)

    def _make_update(self, target: int, least: int) -> tuple[bytes, tuple[Step, ...]]:
        """Make an update from one revision to the next; return it, and the steps that give it to the guest."""
        session, scenario = self.session, self.scenario
        update = make_update(
            session._signature, session._platform, target, min_req_ver=least if scenario.min_revision else 0
        )
        steps = [guest_files.put_update(firmware_name(session._signature), update)]
        if session.switches_min_revision:
            steps.append(guest_files.set_min_revision(scenario.min_revision))
        return update, tuple(steps)

    def _wait_for_rest(self) -> None:
        """See that each offline sibling is back where it waits to be brought up again; the judge says whether it is."""
        offline = self.scenario.offline_threads
        bound = self.deadline.within(SETTLE_BOUND_S)
        while offline:
            found = self.link.look_at_rest()
            if all(found[vcpu][0] for vcpu in offline) or bound.expired:
                return
            # One that parks in MWAIT never halts under an emulator of several CPUs.
            if self.scenario.boot.monitor and self.session.all_play_dead(found[vcpu][1] for vcpu in offline):
                return
            time.sleep(SETTLE_STEP_S)

    def _return_siblings(self) -> Returned | None:
        if self.scenario.siblings is not Siblings.RETURNING:
            return None
        return self.session._siblings.bring_back(self.deadline)

    def _read_running(self) -> None:
        """Note what the host gave each vCPU; a trial that ended badly needs it most, as long as QEMU is there."""
        with contextlib.suppress(GuestGone, HostError):
            self.running = tuple(
                VcpuRunning(vcpu=now.vcpu, ran_ns=now.ran_ns - then.ran_ns, waited_ns=now.waited_ns - then.waited_ns)
                for then, now in zip(self.ran_before, self.machine.read_schedstat(self.session._threads), strict=True)
            )

    def _load(self) -> int:
        kind = (self.scenario.mechanism, self.scenario.siblings)
        longest_us = max(self.plan.stretch_us)
        overhead = self.session._overhead.get(kind, FIRST_OVERHEAD)
        thread = InjectionThread(self.machine, self.link, self.plan, overhead, self.deadline)
        try:
            thread.send_before()
            with thread:
                self.command_ns = time.monotonic_ns()
                load_errno = guest_files.load_late(self.agent, self.deadline)
                self.returned_ns = time.monotonic_ns()
        finally:
            self.injections = thread.log
        thread.check()
        self._learn(thread, kind, longest_us)
        return load_errno

    def _learn(self, thread: InjectionThread, kind: tuple[str, Siblings], longest_us: int) -> None:
        """Let the next plan's times follow what this load took."""
        begin_ns = thread.log.begin_ns
        # One that was held took as long as the lab did.
        if not begin_ns or self.plan.holds:
            return
        bound = self.deadline.within(SETTLE_BOUND_S)
        with contextlib.suppress(DeadlineError):
            end_ns = thread.ended_ns or self.link.wait_for(EventKind.LOAD_END, bound).mono_ns
            opened_ns = thread.opened_ns or self.link.wait_for(EventKind.WINDOW_OPEN, bound).mono_ns
            before_us = (opened_ns - begin_ns) // _NS_PER_US
            after_us = max(0, (end_ns - opened_ns) // _NS_PER_US - longest_us)
            known = self.session._overhead.get(kind, Overhead(before_us, after_us))
            self.session._overhead[kind] = Overhead(
                before_us=(3 * known.before_us + before_us) // 4, after_us=(3 * known.after_us + after_us) // 4
            )

    def _send_sentinels(self) -> None:
        assert self.injections is not None
        sentinels = send_sentinels(self.machine, self.link, self.session.topology.vcpus, self.deadline)
        self.injections = msgspec.structs.replace(self.injections, sentinels=sentinels)

    def _settle(self) -> None:
        """Wait until no NMI is pending any more, as far as it shows: the same for every outcome."""
        bound = self.deadline.within(SETTLE_BOUND_S)
        seen = -1
        while seen != (seen := self.link.entries()) and not bound.expired:
            time.sleep(SETTLED_S)

    def _read_state(self) -> RendezvousState | None:
        with contextlib.suppress(EvidenceError):
            if "state.txt" in self.raw:
                return guest_files.read_state(self.raw["state.txt"], self.session.topology)
        return None

    def ask(self) -> None:
        """Ask a guest that stopped answering where its vCPUs are, which ends it for all else."""
        session = self.session
        self.stall, raw = ask_stalled(
            self.machine, self.link, session.topology.vcpus, session._symbolise, session.dump_mib
        )
        self.raw |= raw

    def collect(self, ending: Ending, reason: str) -> Kept:
        """Bring all evidence together, also when the guest is gone."""
        self.link.disarm()
        # Until it is armed the observer has only the trial before to tell of.
        observer = self._collect_observer() if self.armed else None
        console = self.machine.console.part(self.console_mark)
        self.raw["console.log"] = "".join(f"{line}\n" for line in console.lines).encode()
        timings = Timings(
            command_ns=self.command_ns,
            returned_ns=self.returned_ns,
            deadline_ns=self.deadline.at_ns,
            vcpus=self.running,
            steal_ppm=_steal_ppm(self.cpu_before),
        )
        evidence = Evidence(
            schema_version=SCHEMA_VERSION,
            lab_version=__version__,
            scenario=self.scenario,
            plan=self.plan,
            images=self.session._images,
            ending=ending,
            reason=reason,
            observer=observer,
            injections=self.injections,
            guest=self.guest,
            timings=timings,
            console_tail=console.lines[-CONSOLE_TAIL_LINES:],
            console_report=cut_report(console.lines) if ending is not Ending.COMPLETE else (),
            stall=self.stall,
        )
        return Kept(evidence, self.raw)

    def _collect_observer(self) -> ObserverEvidence:
        """Return what the observer saw, and keep the newest revision that its engine has given a core."""
        wait_region = self.session._landmarks.list_functions(self.scenario.mechanism)
        seen = self.session.collect_observer()
        after = (update.after for update in seen.updates)
        self.session.core_revision = max((self.session.core_revision, *after))
        return msgspec.structs.replace(seen, wait_region=wait_region)


def _steal_ppm(before: object) -> int:
    after = psutil.cpu_times()
    total = sum(after) - sum(before)  # type: ignore[call-overload]
    stolen = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
    return int(stolen * _PPM / total) if total > 0 else 0
