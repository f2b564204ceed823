//! The hypercall interface (`hvabi`). On a machine without it, everything is skipped.
#![no_std]
#![no_main]

use guests::cpu::{self, cpuid};
use guests::harness::{Outcome, Tests};
use guests::trap::{Trap, vector};
use guests::{catch_asm, check, check_eq, info, skip, user};
use hvabi::{Call, Features, Registers, ShutDownKind, Status};

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    tests.case("signature", signature);
    tests.case("kvm_first", kvm_first);
    tests.case("version", version);
    tests.case("keeps_registers", keeps_registers);
    tests.case("console_write", console_write);
    tests.case("console_write_refused", console_write_refused);
    tests.case("yield_returns", yield_returns);
    tests.case("time", time);
    tests.case("unknown_calls", unknown_calls);
    tests.case("bad_arguments", bad_arguments);
    tests.case("user_mode", user_mode);
    tests.case("kvm_numbers", kvm_numbers);
    if info::flag("shutdown") {
        // Ends the guest with status 7, if all went well so far.
        let ended = call(Call::ShutDown { kind: ShutDownKind::PowerOff, status: 7 }.into());
        tests.case("shut_down", || {
            check!(ended.is_err(), "it came back: {ended:x?}");
            Ok(())
        });
    }
    tests.finish()
}

fn offered() -> bool {
    let id = cpuid(hvabi::CPUID_LEAF_SIGNATURE, 0);
    let mut bytes = [0; 12];
    for (chunk, register) in bytes.chunks_exact_mut(4).zip([id.ebx, id.ecx, id.edx]) {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    cpu::features().0 >> 31 == 1 && bytes == hvabi::CPUID_SIGNATURE
}

macro_rules! need {
    () => {
        if !offered() {
            skip!("the hypervisor's signature is not there");
        }
    };
}

fn call(before: Registers) -> Result<Registers, Trap> {
    let (mut rax, mut rbx, mut rcx, mut rdx, mut rsi) =
        (before.rax, before.rbx, before.rcx, before.rdx, before.rsi);
    let caught = if cpu::is_amd() {
        catch_asm!(["xchg rbx, rdi", "vmmcall", "xchg rbx, rdi"], inout("rax") rax, inout("rdi") rbx,
            inout("rcx") rcx, inout("rdx") rdx, inout("rsi") rsi)
    } else {
        catch_asm!(["xchg rbx, rdi", "vmcall", "xchg rbx, rdi"], inout("rax") rax, inout("rdi") rbx,
            inout("rcx") rcx, inout("rdx") rdx, inout("rsi") rsi)
    };
    match caught {
        Some(trap) => Err(trap),
        None => Ok(Registers { rax, rbx, rcx, rdx, rsi }),
    }
}

fn status(result: Result<Registers, Trap>) -> Option<Result<(), Option<Status>>> {
    result.ok().map(|registers| Status::from_rax(registers.rax))
}

fn signature() -> Outcome {
    need!();
    let id = cpuid(hvabi::CPUID_LEAF_SIGNATURE, 0);
    check!(id.eax >= hvabi::CPUID_LEAF_INTERFACE, "highest leaf {:#x}", id.eax);
    let interface = cpuid(hvabi::CPUID_LEAF_INTERFACE, 0);
    check_eq!(interface.eax, hvabi::INTERFACE_VERSION, "version");
    check!(
        Features(interface.ebx).contains(Features::CONSOLE_WRITE),
        "features {:#x}",
        interface.ebx
    );
    if id.eax >= hvabi::CPUID_LEAF_TIMING {
        let khz = u64::from(cpuid(hvabi::CPUID_LEAF_TIMING, 0).eax);
        check!(guests::time::close(khz, guests::time::tsc_hz() / 1000, 10), "TSC of {khz} kHz");
    }
    let kvm = cpuid(0x4000_0100, 0);
    check_eq!((kvm.ebx, kvm.ecx, kvm.edx), (0x4b4d_564b, 0x564b_4d56, 0x4d), "KVM's signature");
    Ok(())
}

/// The settings have KVM's signature first: the two have changed places.
fn kvm_first() -> Outcome {
    if !info::flag("kvm-first") {
        skip!("the settings leave this hypervisor's signature first");
    }
    let [first, second] = [0x4000_0000, 0x4000_0100].map(|leaf| cpuid(leaf, 0));
    check_eq!((first.ebx, first.ecx, first.edx), (0x4b4d_564b, 0x564b_4d56, 0x4d), "the first");
    check_eq!(first.eax >> 8, 0x0040_0000, "KVM's highest leaf is of its own range");
    check!(cpuid(0x4000_0001, 0).eax & 1 << 3 != 0, "KVM's clock is among its features");
    let own = [second.ebx, second.ecx, second.edx].map(u32::to_le_bytes);
    check_eq!(own.as_flattened(), hvabi::CPUID_SIGNATURE, "the second");
    check!(second.eax > 0x4000_0100, "its highest leaf is {:#x}", second.eax);
    Ok(())
}

fn version() -> Outcome {
    need!();
    let after = call(Call::Version.into());
    check_eq!(status(after), Some(Ok(())), "status");
    let after = after.unwrap_or_default();
    check_eq!(after.rbx, u64::from(hvabi::INTERFACE_VERSION), "version");
    check_eq!(after.rcx, u64::from(cpuid(hvabi::CPUID_LEAF_INTERFACE, 0).ebx), "features");
    Ok(())
}

fn keeps_registers() -> Outcome {
    need!();
    let before = Registers { rbx: 1, rcx: 2, rdx: 3, rsi: u64::MAX, ..Call::Yield.into() };
    check_eq!(call(before).ok(), Some(Registers { rax: 0, ..before }), "registers after a yield");
    let before = Registers { rdx: 0x1234, rsi: 0x5678, ..Call::Version.into() };
    let after = call(before).unwrap_or_default();
    check_eq!((after.rdx, after.rsi), (0x1234, 0x5678), "RDX and RSI after a version call");
    let before = Registers { rax: 0x77, rbx: 1, rcx: 2, rdx: 3, rsi: 4 };
    let rax = Status::UnknownCall.to_rax();
    check_eq!(
        call(before).ok(),
        Some(Registers { rax, ..before }),
        "registers after an unknown call"
    );
    Ok(())
}

fn write(text: &[u8]) -> Option<u64> {
    let mut done = 0u64;
    for _ in 0..1_000_000 {
        let rest = text.len() as u64 - done;
        let length = u32::try_from(rest).ok()?;
        let address = text.as_ptr().addr() as u64 + done;
        let after = call(Call::ConsoleWrite { address, length }.into()).ok()?;
        if after.rax != 0 || after.rbx > rest {
            return None;
        }
        done += after.rbx;
        if done == text.len() as u64 {
            return Some(done);
        }
    }
    None
}

fn console_write() -> Outcome {
    need!();
    check_eq!(write(b"by hypercall\r\n"), Some(14), "bytes taken");
    check_eq!(write(b""), Some(0), "bytes taken of none");
    // Across two pages.
    user::place(user::DATA + 0xffa, b"across pages\r\n");
    let text = Call::ConsoleWrite { address: user::DATA + 0xffa, length: 14 };
    check_eq!(status(call(text.into())), Some(Ok(())), "status across pages");
    Ok(())
}

fn console_write_refused() -> Outcome {
    need!();
    for (address, length, want) in [
        (0xfee0_0000, 16, Status::Fault),
        (u64::MAX - 7, 16, Status::Fault),
        (1 << 60, 16, Status::Fault),
        (0x20_0000, u64::from(hvabi::CONSOLE_WRITE_MAX) + 1, Status::TooLong),
        (0x20_0000, 1 << 40, Status::TooLong),
    ] {
        let before = Registers {
            rbx: address,
            rcx: length,
            ..Call::ConsoleWrite { address: 0, length: 0 }.into()
        };
        check_eq!(status(call(before)), Some(Err(Some(want))), "{length} bytes at {address:#x}");
    }
    Ok(())
}

fn yield_returns() -> Outcome {
    need!();
    for _ in 0..1000 {
        check_eq!(status(call(Call::Yield.into())), Some(Ok(())), "status");
    }
    Ok(())
}

fn time() -> Outcome {
    need!();
    let first = call(Call::Time.into()).unwrap_or_default();
    let start = cpu::rdtsc();
    guests::time::delay(50_000);
    let second = call(Call::Time.into()).unwrap_or_default();
    let spent = (cpu::rdtsc() - start) * 1000 / (guests::time::tsc_hz() / 1_000_000);
    check_eq!((first.rax, second.rax), (0, 0), "status");
    check!(
        guests::time::close(second.rbx - first.rbx, spent, 10),
        "{} ns, by the TSC {spent}",
        second.rbx - first.rbx
    );
    // Once, in the machine's first second, the host learns better what time it is: the wall clock
    // may step then.
    let went = |from: &Registers, to: &Registers| to.rcx.wrapping_sub(from.rcx);
    if !guests::time::close(went(&first, &second), spent, 10) {
        guests::time::delay(50_000);
        let third = call(Call::Time.into()).unwrap_or_default();
        let went = went(&second, &third);
        check!(went > spent / 2 && went < spent * 2, "the wall clock went {went} ns");
    }
    let year = 365 * 86_400 * 1_000_000_000u64;
    check!(first.rcx > 53 * year && first.rcx < 180 * year, "wall clock {}", first.rcx);
    Ok(())
}

fn unknown_calls() -> Outcome {
    need!();
    for rax in [
        hvabi::STEWARD_BASE + 0x1000,
        hvabi::STEWARD_BASE + 0xffff,
        0x8000_0000,
        0x1_0000_0000,
        u64::MAX,
    ] {
        let before = Registers { rax, ..Registers::default() };
        check_eq!(status(call(before)), Some(Err(Some(Status::UnknownCall))), "call {rax:#x}");
    }
    Ok(())
}

fn bad_arguments() -> Outcome {
    need!();
    let base: Registers = Call::ShutDown { kind: ShutDownKind::PowerOff, status: 0 }.into();
    for (rbx, rcx) in [(3, 0), (u64::MAX, 0), (0, 256)] {
        let before = Registers { rbx, rcx, ..base };
        check_eq!(
            status(call(before)),
            Some(Err(Some(Status::InvalidArgument))),
            "shut down {rbx:#x} {rcx:#x}"
        );
    }
    Ok(())
}

fn user_mode() -> Outcome {
    need!();
    let code =
        if cpu::is_amd() { [0x0f, 0x01, 0xd9, 0xcd, 0x80] } else { [0x0f, 0x01, 0xc1, 0xcd, 0x80] };
    for rax in [hvabi::STEWARD_BASE, hvabi::STEWARD_BASE + 4, 5, 0x1234] {
        let trap = user::run(&code, [rax, 0, 0, 0]);
        check_eq!(trap.vector, vector::USER_RETURN, "how ring 3 ended");
        check_eq!(trap.rax, Status::NotPermitted.to_rax(), "call {rax:#x}");
    }
    Ok(())
}

fn kvm_numbers() -> Outcome {
    need!();
    use hvabi::kvm::call as kvm;
    let poll = Registers { rax: kvm::VAPIC_POLL_IRQ, ..Registers::default() };
    check_eq!(status(call(poll)), Some(Ok(())), "VAPIC_POLL_IRQ");
    let unknown = Registers { rax: 0x100, ..Registers::default() };
    check_eq!(status(call(unknown)), Some(Err(Some(Status::UnknownCall))), "an unknown number");
    Ok(())
}
