//! Starting the machine's other CPUs: a page below 1 MiB takes each from real
//! mode to the image (SDM: "Multiple-Processor (MP) Initialization").
//!
//! One CPU starts at a time. It gets its stack and number from the page, loads
//! the hypervisor's tables and says that it is there. Before it is used its time-stamp
//! counter is compared with the first one's.

use crate::cpu::percpu::{self, MAX_CPUS};
use crate::cpu::tables::TrapStacks;
use crate::cpu::{apic, asm, msr, tsc, tsc_sync};
use crate::drivers::rtc;
use crate::error::HostError;
use crate::mm::{self, Handover, Unsealed};
use core::arch::{global_asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use spin::Mutex;
use x86_64::registers::control::{Cr0, Cr4, Cr4Flags};
use x86defs::addr::PAGE_SIZE;
use x86defs::bits::Low;
use x86defs::pte::Pte;
use x86defs::{Efer, HostPhysAddr, Msr};

/// Pages of a CPU's stack: 128 KiB.
const STACK_PAGES: u64 = 32;
/// How long a CPU may take to say that it is there.
const PATIENCE_MS: u64 = 2000;

/// Parameters of the page's code. They lie at [`PARAMETERS`] in the page.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Parameters {
    /// Beginning of the 64-bit code: offset and selector of a far pointer.
    long_mode: u32,
    long_mode_selector: u16,
    _pad: u16,
    /// Limit and address of the descriptor table, for LGDT.
    gdt_limit: u16,
    gdt_base: [u16; 2],
    _pad2: u16,
    /// Null, 64-bit code, data.
    gdt: [u64; 3],
    /// Root of tables with the page at its own address and the image.
    boot_root: u64,
    /// EFER.
    efer: u64,
    /// CR4.
    cr4: u64,
    /// CR0.
    cr0: u64,
    /// Address in the image at which the CPU goes on.
    entry: u64,
    /// Top of the CPU's stack.
    stack: u64,
    /// The CPU's number.
    index: u64,
    /// Root of the hypervisor's tables.
    root: u64,
}

/// Offset of the parameters in the page; before them is a jump.
const PARAMETERS: u64 = 8;

const fn at(offset: usize) -> u64 {
    PARAMETERS + offset as u64
}

global_asm!(
    ".pushsection .rodata.start_up, \"a\"",
    ".balign 16",
    ".global steward_start_up",
    ".global steward_start_up_long",
    ".global steward_start_up_end",
    "steward_start_up:",
    ".code16",
    "jmp 2f",
    ".balign 8",
    ".skip {size}",
    "2:",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    // LGDT with a 32-bit base.
    ".byte 0x66, 0x0f, 0x01, 0x16",
    ".word {gdt}",
    "mov eax, [{cr4}]",
    "mov cr4, eax",
    "mov eax, [{boot_root}]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "mov eax, [{efer}]",
    "xor edx, edx",
    "wrmsr",
    "mov eax, [{cr0}]",
    "mov cr0, eax",
    // JMP m16:32.
    ".byte 0x66, 0xff, 0x2e",
    ".word {long}",
    ".code64",
    "steward_start_up_long:",
    "mov ax, 0x10",
    "mov ss, ax",
    "xor eax, eax",
    "mov ds, ax",
    "mov es, ax",
    "mov fs, ax",
    "mov gs, ax",
    "lea rbx, [rip + steward_start_up]",
    "mov rax, [rbx + {entry}]",
    "mov rdx, [rbx + {stack}]",
    "mov rdi, [rbx + {index}]",
    "mov rsi, [rbx + {root}]",
    "jmp rax",
    "steward_start_up_end:",
    ".popsection",
    size = const size_of::<Parameters>(),
    long = const at(offset_of!(Parameters, long_mode)),
    gdt = const at(offset_of!(Parameters, gdt_limit)),
    cr4 = const at(offset_of!(Parameters, cr4)),
    boot_root = const at(offset_of!(Parameters, boot_root)),
    efer = const at(offset_of!(Parameters, efer)),
    cr0 = const at(offset_of!(Parameters, cr0)),
    entry = const at(offset_of!(Parameters, entry)),
    stack = const at(offset_of!(Parameters, stack)),
    index = const at(offset_of!(Parameters, index)),
    root = const at(offset_of!(Parameters, root)),
);

unsafe extern "C" {
    static steward_start_up: u8;
    static steward_start_up_long: u8;
    static steward_start_up_end: u8;
}

/// Selector of the 64-bit code segment.
const CODE: u16 = 0x08;
const GDT: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// The first instructions in the image: the hypervisor's own tables and stack.
#[unsafe(naked)]
extern "C" fn enter_image() {
    naked_asm!(
        "mov cr3, rsi",
        "mov rsp, rdx",
        "xor ebp, ebp",
        "call {main}",
        "ud2",
        main = sym started,
    )
}

/// The function of [`crate::machine`] that [`started`] goes on with, set before the first CPU
/// starts.
static GO_ON: AtomicU64 = AtomicU64::new(0);
/// The CPU's stacks for traps; the one that starts is the only reader.
static STACKS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// Memory for its descriptor tables.
static TABLES: Mutex<Option<Unsealed>> = Mutex::new(None);
/// CPUs that have said that they are there.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// A CPU is in the image, on its own stack.
extern "C" fn started(index: usize) -> ! {
    // SAFETY: every 64-bit CPU has PAT; the value is what the tables count on.
    unsafe { msr::write(Msr::PAT, memory::stage2::HOST_PAT) };
    let [double_fault, nmi, machine_check] =
        STACKS.each_ref().map(|stack| stack.load(Ordering::Acquire));
    let Some(tables) = TABLES.lock().take() else { asm::stop() };
    super::processor_tables(index, TrapStacks { double_fault, nmi, machine_check }, tables);
    apic::init_other();
    percpu::set_online(apic::id());
    tsc_sync::arrive();
    ARRIVED.fetch_add(1, Ordering::Release);
    tsc_sync::answer();
    let go_on = GO_ON.load(Ordering::Acquire);
    // SAFETY: `start` stored a function of this very type.
    let go_on: fn() -> ! = unsafe { core::mem::transmute(go_on) };
    go_on()
}

/// Starts every CPU of `cpus`, local-APIC identifiers, which then calls `go_on`; returns how
/// many CPUs there are now. One that does not come is reported and left out.
///
/// # Errors
/// [`HostError::OutOfMemory`].
pub(super) fn start(
    handover: &Handover,
    cpus: &[u32],
    go_on: fn() -> !,
) -> Result<usize, HostError> {
    let own = apic::id();
    percpu::set_online(own);
    let others: alloc::vec::Vec<u32> = cpus.iter().copied().filter(|id| *id != own).collect();
    if others.is_empty() {
        return Ok(1);
    }
    let Some(low) = handover.low_pages else {
        log::warn!("no free memory below 640 KiB: the other {} CPU(s) stay off", others.len());
        return Ok(1);
    };
    tsc_sync::first();
    GO_ON.store(go_on as *const () as u64, Ordering::Release);
    let page = StartUpPage::new(low)?;
    let mut count = 1;
    for id in others {
        if count == MAX_CPUS {
            log::warn!("more than {MAX_CPUS} CPUs: the others stay off");
            break;
        }
        if page.start(id, count)? {
            count += 1;
        } else {
            log::warn!("the CPU with APIC {id} does not start");
            // The CPU may still come: its stack and number are never used again.
            break;
        }
    }
    Ok(count)
}

/// Low memory with the code that a CPU starts in, and tables for its way up.
struct StartUpPage {
    physical: HostPhysAddr,
    code: u64,
    boot_root: u64,
}

impl StartUpPage {
    fn new(physical: HostPhysAddr) -> Result<Self, HostError> {
        let code = mm::map_low(physical, mm::START_UP_BYTES)?;
        let len =
            (&raw const steward_start_up_end) as usize - (&raw const steward_start_up) as usize;
        // SAFETY: the code is shorter than the page, which was mapped writable
        // for this alone.
        unsafe {
            core::ptr::copy_nonoverlapping(&raw const steward_start_up, code as *mut u8, len);
        }
        let table = |number: u64| physical.as_u64() + number * PAGE_SIZE;
        let put = |number: u64, index: usize, value: u64| {
            let place = (code + number * PAGE_SIZE + index as u64 * 8) as *mut u64;
            // SAFETY: the index is below 512, inside the page of that table.
            unsafe { place.write_volatile(value) };
        };
        let next = (Pte::P | Pte::W).bits();
        for index in 0..512 {
            let shared = if index < 256 { 0 } else { mm::kernel_root_entry(index) };
            put(1, index, shared);
            put(2, index, 0);
            put(3, index, 0);
        }
        put(1, 0, table(2) | next);
        put(2, 0, table(3) | next);
        // The first 2 MiB at their own address.
        put(3, 0, next | Pte::PS.bits());
        Ok(Self { physical, code, boot_root: table(1) })
    }

    /// Starts one CPU; `false` if it does not come.
    fn start(&self, apic_id: u32, index: usize) -> Result<bool, HostError> {
        let stack = mm::map_stack(STACK_PAGES)?;
        for slot in &STACKS {
            slot.store(mm::map_stack(4)?, Ordering::Release);
        }
        *TABLES.lock() = Some(super::table_memory()?);
        // SAFETY: EFER exists on every 64-bit CPU.
        let efer = unsafe { msr::read(Msr::EFER) };
        let long = (&raw const steward_start_up_long) as u64 - (&raw const steward_start_up) as u64;
        let page = self.physical.as_u64();
        let gdt = (page + at(offset_of!(Parameters, gdt))).low32();
        let parameters = Parameters {
            long_mode: (page + long).low32(),
            long_mode_selector: CODE,
            _pad: 0,
            gdt_limit: 23,
            gdt_base: [gdt.low16(), (gdt >> 16).low16()],
            _pad2: 0,
            gdt: GDT,
            boot_root: self.boot_root,
            efer: efer & !(Efer::SVME | Efer::LMA).bits(),
            // Process-context identifiers can't be set before long mode is
            // active; what is left the image sets.
            cr4: Cr4::read_raw()
                & (Cr4Flags::PHYSICAL_ADDRESS_EXTENSION | Cr4Flags::PAGE_GLOBAL).bits(),
            cr0: Cr0::read_raw(),
            entry: enter_image as *const () as u64,
            stack,
            index: index as u64,
            root: mm::kernel_root().as_u64(),
        };
        // SAFETY: the place is inside the page, aligned to eight bytes, and no
        // CPU reads it before it is started below.
        unsafe { ((self.code + PARAMETERS) as *mut Parameters).write_volatile(parameters) };
        let before = ARRIVED.load(Ordering::Acquire);
        // Below 640 KiB: the number of the page is less than 160.
        apic::start_up(apic_id, (page / PAGE_SIZE).low8(), rtc::wait_us);
        let deadline = asm::rdtsc() + tsc::khz() * PATIENCE_MS;
        let mut looks = asm::rdtsc() + tsc::khz();
        while ARRIVED.load(Ordering::Acquire) == before {
            let now = asm::rdtsc();
            if now > deadline {
                return Ok(false);
            }
            if now > looks {
                looks = now + tsc::khz();
                rtc::look();
            }
            core::hint::spin_loop();
        }
        let answers = tsc_sync::compare(index);
        rtc::look();
        Ok(answers)
    }
}
