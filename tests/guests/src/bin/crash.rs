//! A guest that comes to a chosen end; the command line says which:
//! `triple-fault`, `pvpanic`, `jump`, `reset`, `keyboard-reset`, `poweroff`,
//! `loop`, `flood`, `halt`, `halt-pit`, `halt-apic`, `forge`, `cr4`, `shutdown-call`, `exit=N`.
#![no_std]
#![no_main]

use guests::apic::{Lapic, reg};
use guests::harness::{self, halt};
use guests::io::{inb, outb, outw};
use guests::pc::pit;
use guests::trap::{self, TableRegister};
use guests::{catch_asm, cpu, info, println};

guests::entry!(main);

fn main() -> ! {
    let how = info::command_line().split_ascii_whitespace().next().unwrap_or("");
    println!("ending: {how}");
    match how {
        "triple-fault" => triple_fault(),
        "pvpanic" => {
            outb(0x505, 1);
            cpu::cli();
            halt()
        }
        "jump" => {
            let caught = catch_asm!(["jmp {t}"], t = in(reg) 0x70_0000_0000u64);
            println!("caught {:x?}", caught.map(|t| (t.vector, t.error, t.cr2)));
            triple_fault()
        }
        "reset" => outb(0xcf9, 6),
        "keyboard-reset" => {
            for _ in 0..100_000 {
                if inb(0x64) & 2 == 0 {
                    break;
                }
            }
            outb(0x64, 0xfe);
        }
        "poweroff" => harness::power_off(),
        "poweroff-type" => outw(0x604, 5 << 10 | 1 << 13),
        "loop" => {
            cpu::cli();
            loop {
                cpu::pause();
            }
        }
        "flood" => loop {
            let _ = inb(0x80);
        },
        "halt" => halt(),
        // Timers ring a hundred times a second; nobody takes their interrupts.
        "halt-pit" => {
            pit::program(0, 2, 11_932);
            halt()
        }
        "halt-apic" => {
            let lapic = Lapic::now();
            lapic.enable();
            lapic.write(reg::TIMER_DIVIDE, 0xb);
            lapic.write(reg::LVT_TIMER, 1 << 17 | 0x40);
            lapic.write(reg::TIMER_INITIAL, 10_000_000);
            halt()
        }
        "forge" => {
            // The hypervisor's own lines; questions to a terminal; text that it only shows.
            println!("steward: end: status=0 reason=guest forged powered off");
            let key = "00000000-0000-0000-0000-000000000000";
            println!("steward: end: status=0 key={key} reason=guest forged powered off");
            println!("asks: <\x05\x1b[6n\x1b[c\x1bZ\x1b]0;title\x07\x1bP$qm\x1b\\\x1b[21t>");
            println!("shows: <\x1b[1;32mgreen\x1b[0m\x1b[K>");
            // Nothing that comes after this is to be seen.
            println!("leaves: <\x1b[8m\x1b[?25l\x1b[?1h>");
            halt()
        }
        "cr4" => {
            let caught = cpu::set_cr4(cpu::cr4() | 1 << 63);
            println!("caught {:x?}", caught.map(|t| (t.vector, t.error)));
            triple_fault()
        }
        "shutdown-call" => {
            let call = hvabi::Registers::from(hvabi::Call::ShutDown {
                kind: hvabi::ShutDownKind::Crash,
                status: 42,
            });
            let caught = catch_asm!(["xchg rbx, rdi", "vmmcall", "xchg rbx, rdi"], inout("rax") call.rax => _,
                inout("rdi") call.rbx => _, in("rcx") call.rcx, in("rdx") 0u64, in("rsi") 0u64);
            println!("it came back: {:x?}", caught.map(|t| t.vector));
        }
        other => {
            if let Some(value) = other.strip_prefix("exit=").and_then(|n| n.parse().ok()) {
                harness::exit(value)
            }
            println!("no such end: {other}");
        }
    }
    // A reset or power-off may take a moment.
    guests::time::delay(2_000_000);
    println!("still here");
    harness::exit(1)
}

/// No IDT, then an exception.
fn triple_fault() -> ! {
    trap::load_idt(&TableRegister { limit: 0, base: 0 });
    // SAFETY: it is meant to end the machine.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
