# SPDX-License-Identifier: GPL-2.0-or-later
"""From images to a running guest with its observer, ready for trials."""

import contextlib
from collections.abc import Iterator
from typing import Final

from lab.build.images import ImageSet
from lab.errors import EvidenceError, GuestGone, GuestUnfit, UsageError
from lab.guest.config import BOOT_REVISION, DEFAULT_CPU, PLATFORMS, SIGNATURE, Accelerator, GuestSpec
from lab.guest.machine import start_guest
from lab.guest.user import choose_user
from lab.host.deadline import Deadline
from lab.host.files import write_whole
from lab.host.handing import HandedFiles
from lab.host.run_dir import make_run_dir
from lab.kernelimage.landmarks import find_landmarks
from lab.kernelimage.vmlinux import Kernel
from lab.mechanisms.base import find_base
from lab.mechanisms.table import mechanisms_of
from lab.model.boot import Boot, Granularity
from lab.model.qemu import Qemu
from lab.observer.link import COVER_BLOCKS, ObserverLink, Processor
from lab.trial.keys import make_guest_keys
from lab.trial.session import Session

#: Switches the engine of images/kernels on.
ENGINE_ARG: Final = "microcode_engine"
#: The CPU that all guests have.
PROCESSOR: Final = Processor(signature=SIGNATURE, platforms=PLATFORMS, revision=BOOT_REVISION)
#: Boot takes 3 s on two free cores; a crowded host is slower, not another one.
BOOT_S: Final = 90.0
#: One instruction at a time, QEMU 10.0 and 11.1 take a fifth longer than 7.2: 80 s where four guests share two cores.
STEPPED_BOOT_S: Final = 3 * BOOT_S
#: How often a guest is booted that turns out to be unfit.
BOOTS: Final = 3
#: A trial has a few hundred events; a storm of a thousand NMIs on sixteen vCPUs still fits.
RING_RECORDS: Final = 65_536
#: Every instruction of a load takes a place of its own.
STEPPED_COVER_BLOCKS: Final = 8 * COVER_BLOCKS


@contextlib.contextmanager
def open_session(images: ImageSet, kernel: Kernel, boot: Boot, ring_records: int = RING_RECORDS) -> Iterator[Session]:
    """Boot a guest with an observer, ready for trials, and leave nothing of it behind.

    One that an accident of its boot made unfit is replaced, a few times.

    :param kernel: read from the images' vmlinux
    :param boot: what to boot it with; the images are of its base
    :param ring_records: how many events of a trial the observer can keep
    :raise UsageError: the boot needs an engine in the observer, and this QEMU has no place for one
    :raise GuestUnfit: each was unfit
    :raise GuestGone: it did not boot, or is not the machine that was asked for
    :raise HostError: the host could not start it
    """
    choose_engine(boot, images.qemu)
    with contextlib.ExitStack() as stack:
        for left in reversed(range(BOOTS)):
            try:
                session = stack.enter_context(_open_once(images, kernel, boot, ring_records))
                break
            except GuestUnfit:
                if not left:
                    raise
        yield session


def choose_engine(boot: Boot, qemu: Qemu) -> Processor | None:
    """Return the processor whose engine the observer is to answer for, None where it is not to.

    :raise UsageError: it would have to, and this QEMU does not let it
    """
    if boot.outside and not boot.refusing and not qemu.can_be_engine:
        raise UsageError(
            f"the engine has to be in the observer, and QEMU {qemu.version} offers plugin interface {qemu.level}:"
            " interface 6 (QEMU 11.0) is the least; choose another with --qemu, or leave out --engine"
        )
    wanted = boot.outside or not find_base(boot.base).engine
    return PROCESSOR if wanted and qemu.can_be_engine else None


@contextlib.contextmanager
def _open_once(images: ImageSet, kernel: Kernel, boot: Boot, ring_records: int) -> Iterator[Session]:
    stepped = boot.granularity is Granularity.INSTRUCTION
    deadline = Deadline.after(STEPPED_BOOT_S if stepped else BOOT_S)
    with contextlib.ExitStack() as stack:
        run_dir = stack.enter_context(make_run_dir())
        cover_blocks = STEPPED_COVER_BLOCKS if stepped else COVER_BLOCKS
        made = ObserverLink.create(run_dir, boot.topology, ring_records, cover_blocks=cover_blocks)
        link = stack.enter_context(made)
        landmarks = run_dir / "landmarks"
        found = find_landmarks(kernel, mechanisms_of(boot.base))
        write_whole(landmarks, found.to_text().encode())
        handed = stack.enter_context(HandedFiles(choose_user(Accelerator.TCG)))
        engine = choose_engine(boot, images.qemu)
        patched = find_base(boot.base).engine and not boot.outside
        spec = GuestSpec(
            qemu=images.qemu,
            topology=boot.topology,
            kernel=images.kernel,
            initrd=images.initramfs,
            cpu=DEFAULT_CPU + (",+monitor" if boot.monitor else ""),
            kernel_args=(*((ENGINE_ARG,) if patched else ()), *boot.kernel_args),
            plugin=link.plugin_arguments(
                handed.hand(images.observer), handed.hand(landmarks), handed.hand(link.path, writable=True), engine
            ),
            stepped=stepped,
        )
        machine = stack.enter_context(start_guest(spec, make_guest_keys(), run_dir, deadline, link.pass_fd, handed))
        link.close_child_end()
        try:
            session = Session(
                images=images,
                kernel=kernel,
                landmarks=found,
                boot=boot,
                machine=machine,
                link=link,
                deadline=deadline,
                engine=engine,
            )
        except EvidenceError as error:
            raise GuestGone(f"the guest cannot serve trials: {error}") from error
        yield session
