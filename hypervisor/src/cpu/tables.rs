//! Descriptor tables of a CPU: GDT, TSS with its interrupt stacks, IDT
//! (APM volume 2: "System Data Structures").

use super::traps;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

/// Interrupt-stack-table slot of double faults.
const IST_DOUBLE_FAULT: u16 = 0;
/// Interrupt-stack-table slot of NMIs.
const IST_NMI: u16 = 1;
/// Interrupt-stack-table slot of machine checks.
const IST_MACHINE_CHECK: u16 = 2;

/// The selector of the task-state segment, once [`install`] has run.
pub const TSS_SELECTOR: u16 = 0x18;

/// Tops of the stacks for traps that can't trust the current one.
#[derive(Clone, Copy, Debug)]
pub struct TrapStacks {
    /// For double faults.
    pub double_fault: u64,
    /// For NMIs.
    pub nmi: u64,
    /// For machine checks.
    pub machine_check: u64,
}

/// Offsets of a CPU's tables in their memory, in bytes; the IDT stands first.
const GDT: usize = 0x1000;
const TSS: usize = 0x1800;
/// Size of the memory for a CPU's tables, in bytes.
pub const BYTES: usize = 0x2000;

const _: () = {
    assert!(size_of::<InterruptDescriptorTable>() <= GDT);
    assert!(size_of::<GlobalDescriptorTable>() <= TSS - GDT);
    assert!(TSS + size_of::<TaskStateSegment>() <= BYTES);
};

/// Puts `value` at the beginning of `memory`, where it stays for good.
fn place<T>(memory: &'static mut [u8], value: T) -> &'static mut T {
    assert!(size_of::<T>() <= memory.len());
    let place = memory.as_mut_ptr().cast::<T>();
    assert!(place.is_aligned());
    // SAFETY: it fits, is aligned, and nothing else refers to the memory.
    unsafe { place.write(value) };
    // SAFETY: it was just written, and nothing else refers to it.
    unsafe { &mut *place }
}

/// Gives this CPU its own descriptor tables, for good, in `memory`: [`BYTES`] from the beginning of
/// a page, to be made read-only when this is done. The CPU writes to them in two cases, which
/// are over by then: it marks the task's segment as busy when that is loaded, and a code or data
/// segment as accessed, which these are from the start (SDM: "Segment Descriptors", "TSS
/// Descriptor").
pub fn install(stacks: TrapStacks, memory: &'static mut [u8]) {
    let (memory, tss) = memory.split_at_mut(TSS);
    let (idt, gdt) = memory.split_at_mut(GDT);
    let tss = place(tss, TaskStateSegment::new());
    for (slot, top) in [
        (IST_DOUBLE_FAULT, stacks.double_fault),
        (IST_NMI, stacks.nmi),
        (IST_MACHINE_CHECK, stacks.machine_check),
    ] {
        tss.interrupt_stack_table[usize::from(slot)] = VirtAddr::new(top);
    }
    let gdt = place(gdt, GlobalDescriptorTable::new());
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    load_segments(code, data, task);
    let idt = place(idt, InterruptDescriptorTable::new());
    fill(idt);
    idt.load();
}

fn load_segments(code: SegmentSelector, data: SegmentSelector, task: SegmentSelector) {
    let null = SegmentSelector::NULL;
    // SAFETY: `code` selects the 64-bit code segment of the table just loaded.
    unsafe { CS::set_reg(code) };
    // SAFETY: `data` selects its writable data segment.
    unsafe { SS::set_reg(data) };
    // SAFETY: null selectors are valid for data segments in 64-bit mode.
    unsafe { DS::set_reg(null) };
    // SAFETY: a null selector is valid for ES, as for DS.
    unsafe { ES::set_reg(null) };
    // SAFETY: a null selector is valid for FS, as for DS; nothing is addressed through FS.
    unsafe { FS::set_reg(null) };
    // SAFETY: a null selector is valid for GS, as for DS; `percpu::claim` gives GS its base
    // afterwards.
    unsafe { GS::set_reg(null) };
    // SAFETY: `task` selects a TSS that lives for ever.
    unsafe { load_tss(task) };
}

fn fill(idt: &mut InterruptDescriptorTable) {
    let at = |vector: usize| VirtAddr::new(traps::stub(vector));
    macro_rules! set {
        ($($field:ident = $vector:literal),*) => {$(
            // SAFETY: the stub of this vector saves every register and returns with IRETQ.
            unsafe { idt.$field.set_handler_addr(at($vector)) };
        )*};
    }
    set!(
        divide_error = 0,
        debug = 1,
        breakpoint = 3,
        overflow = 4,
        bound_range_exceeded = 5,
        invalid_opcode = 6,
        device_not_available = 7,
        invalid_tss = 10,
        segment_not_present = 11,
        stack_segment_fault = 12,
        general_protection_fault = 13,
        page_fault = 14,
        x87_floating_point = 16,
        alignment_check = 17,
        simd_floating_point = 19,
        virtualization = 20,
        cp_protection_exception = 21
    );
    // SAFETY: the stub of this vector saves every register and returns with IRETQ.
    let double_fault = unsafe { idt.double_fault.set_handler_addr(at(8)) };
    // SAFETY: the slot holds the top of a stack that is used for nothing else.
    unsafe { double_fault.set_stack_index(IST_DOUBLE_FAULT) };
    // SAFETY: as for double faults.
    let nmi = unsafe { idt.non_maskable_interrupt.set_handler_addr(at(2)) };
    // SAFETY: as for double faults.
    unsafe { nmi.set_stack_index(IST_NMI) };
    // SAFETY: as for double faults.
    let machine_check = unsafe { idt.machine_check.set_handler_addr(at(18)) };
    // SAFETY: as for double faults.
    unsafe { machine_check.set_stack_index(IST_MACHINE_CHECK) };
    for vector in 32..=255u8 {
        // SAFETY: the stub of this vector saves every register and returns with IRETQ.
        unsafe { idt[vector].set_handler_addr(at(usize::from(vector))) };
    }
}
