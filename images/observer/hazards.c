// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Decode just enough of one x86 instruction to tell its class of hazard (SDM 2A, appendix A).
 *
 * QEMU hands over exactly one instruction's bytes, so its length needs no decoding, and the mode
 * none either: outside 64-bit mode 40..4f are whole instructions, with nothing behind them to be
 * taken for an opcode.
 */
#include "hazards.h"

#define REX_R 0x04

struct insn {
	const uint8_t *at; /* behind the prefixes */
	size_t left;
	bool rep;
	uint8_t rex;
};

static bool is_legacy_prefix(uint8_t byte)
{
	switch (byte) {
	case 0x26: /* segments */
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64:
	case 0x65:
	case 0x66: /* operand and address size */
	case 0x67:
	case 0xf0: /* LOCK, REPNE, REP */
	case 0xf2:
	case 0xf3:
		return true;
	}
	return false;
}

static struct insn skip_prefixes(const uint8_t *bytes, size_t size)
{
	struct insn insn = {.at = bytes, .left = size};

	for (; insn.left; insn.at++, insn.left--) {
		if (is_legacy_prefix(*insn.at)) {
			/* Of REP and REPNE the last counts; a REX counts only right before the
			 * opcode. */
			if (*insn.at == 0xf2 || *insn.at == 0xf3)
				insn.rep = *insn.at == 0xf3;
			insn.rex = 0;
		} else if ((*insn.at & 0xf0) == 0x40) {
			insn.rex = *insn.at;
		} else {
			break;
		}
	}
	return insn;
}

static unsigned int reg_of(uint8_t modrm)
{
	return (modrm >> 3) & 7;
}

/* Opcodes 0f xx that need their ModRM byte. */
static enum observer_hazard hazard_of_modrm(const struct insn *insn, uint8_t opcode, uint8_t modrm)
{
	switch (opcode) {
	case 0x00:
		return reg_of(modrm) == 5 ? HAZARD_OTHER : HAZARD_NONE; /* VERW */
	case 0x01:
		if (modrm == 0xc6) /* WRMSRNS */
			return HAZARD_MSR;
		if (modrm == 0xc8 || modrm == 0xc9) /* MONITOR, MWAIT */
			return HAZARD_MWAIT;
		return modrm == 0xf8 ? HAZARD_SWAPGS : HAZARD_NONE;
	case 0x20: /* MOV from and to CR3; with REX.R it would be CR11, which is none */
	case 0x22:
		return reg_of(modrm) == 3 && !(insn->rex & REX_R) ? HAZARD_DR_CR : HAZARD_NONE;
	case 0xae: /* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE */
		return insn->rep && modrm >> 6 == 3 && reg_of(modrm) < 4 ? HAZARD_GSBASE
									 : HAZARD_NONE;
	}
	return HAZARD_NONE;
}

enum observer_hazard hazard_of(const uint8_t *bytes, size_t size)
{
	struct insn insn = skip_prefixes(bytes, size);

	if (!insn.left)
		return HAZARD_NONE;
	if (insn.at[0] == 0xcf) /* IRET */
		return HAZARD_IRET;
	if (insn.at[0] == 0xf4) /* HLT */
		return HAZARD_OTHER;
	if (insn.at[0] != 0x0f || insn.left < 2)
		return HAZARD_NONE;

	switch (insn.at[1]) {
	case 0x09: /* WBINVD, WBNOINVD */
		return HAZARD_OTHER;
	case 0x21: /* MOV from and to DR */
	case 0x23:
		return HAZARD_DR_CR;
	case 0x30: /* WRMSR, RDMSR */
	case 0x32:
		return HAZARD_MSR;
	case 0xa2:
		return HAZARD_CPUID;
	case 0xaa: /* RSM */
		return HAZARD_IRET;
	}
	return insn.left < 3 ? HAZARD_NONE : hazard_of_modrm(&insn, insn.at[1], insn.at[2]);
}

bool is_wrmsr(const uint8_t *bytes, size_t size)
{
	struct insn insn = skip_prefixes(bytes, size);

	if (insn.left < 2 || insn.at[0] != 0x0f)
		return false;
	return insn.at[1] == 0x30 || (insn.left == 3 && insn.at[1] == 0x01 && insn.at[2] == 0xc6);
}

bool is_rdmsr(const uint8_t *bytes, size_t size)
{
	struct insn insn = skip_prefixes(bytes, size);

	return insn.left == 2 && insn.at[0] == 0x0f && insn.at[1] == 0x32;
}
