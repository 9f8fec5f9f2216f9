/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest of 64 KiB in place of a BIOS, for two vCPUs: a rendezvous around WRMSR 0x79 without a kernel.
 *
 * Both vCPUs enter at `entry`. The first becomes the primary and goes round for ever: load, two WRMSR 0x79
 * in it, one after it. The second waits while told to; built with HALTING it halts instead of spinning, and
 * the primary wakes it by an NMI.
 *
 * Built with UPDATING, its WRMSRs name the update at `update`, and it reads the revision behind them to 0x510.
 *
 * Bytes of low memory: 0x500 the sibling is up, 0x501 it shall wait, 0x502 it waits.
 */
	.code16
	.globl	entry, load_begin, load_end, call_in, release, nmi_entry, region, region_end
	.globl	update, window_site, retry_site, early_site, after_window, cpuid_site, iret_site, set_up

	.set	APIC_ICR, 0xfee00300

entry:
	cli
	mov	$0x1b, %ecx
	rdmsr
	test	$0x100, %eax		/* the boot processor's bit of IA32_APIC_BASE */
	jz	sibling

primary:
	lgdtl	%cs:gdt_pointer
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	mov	$8, %bx
	mov	%bx, %ds		/* reaches all 4 GiB from here on, also in real mode */
	and	$0xfe, %al
	mov	%eax, %cr0
	xor	%ax, %ax
	mov	%ax, %ss
	mov	$0x7000, %sp
	movw	$nmi_entry, 0x8		/* vector 2 */
	movw	%cs, 0xa
	mov	$APIC_ICR, %ebx
	movl	$0xc4500, %ds:(%ebx)	/* INIT, then SIPI to f0000, to all but itself */
	call	pause_a_little
	movl	$0xc46f0, %ds:(%ebx)
1:	cmpb	$1, 0x500
	jne	1b

load_begin:
	nop
	movb	$1, 0x501
1:	cmpb	$1, 0x502
	jne	1b
	call	pause_a_little
set_up:
	xor	%eax, %eax
#ifdef UPDATING
	mov	$update + 0xf0030, %eax	/* behind the header */
#endif
	xor	%edx, %edx
	mov	$0x79, %ecx
window_site:
	wrmsr
after_window:
	nop
retry_site:
	wrmsr
#ifdef UPDATING
	xor	%eax, %eax
	xor	%edx, %edx
	mov	$0x8b, %ecx
	wrmsr
	mov	$1, %eax
	cpuid
	mov	$0x8b, %ecx
	rdmsr
	mov	%edx, 0x510
	mov	$update + 0xf0030, %eax
	xor	%edx, %edx
	mov	$0x79, %ecx
#endif
	movb	$0, 0x501
#ifdef HALTING
	mov	$APIC_ICR, %ebx
	movl	$0xc4400, %ds:(%ebx)
#endif
1:	cmpb	$0, 0x502
	jne	1b
load_end:
	nop
early_site:
	wrmsr
	call	pause_a_little
	jmp	load_begin

sibling:
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$0x6000, %sp
	movb	$1, 0x500
1:	cmpb	$1, 0x501
	jne	1b
call_in:
	nop
	movb	$1, 0x502
region:
#ifdef HALTING
	hlt
#endif
#ifdef NASTY
	jmp	cpuid_site
back:
#endif
	cmpb	$0, 0x501
	jne	region
region_end:
release:
	nop
	movb	$0, 0x502
	jmp	1b

cpuid_site:
	cpuid
#ifdef NASTY
	jmp	back
#endif

nmi_entry:
	nop
iret_site:
	iret

pause_a_little:
	mov	$200000, %ecx
1:	dec	%ecx
	jnz	1b
	ret

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf92000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	0xf0000 + gdt

	.org	0x8000
update:

	.org	0xfff0
	ljmp	$0xf000, $entry
	.org	0x10000
