//! Memory between guests and between a guest's vCPUs: what an earlier guest left, and ranges
//! that race.

use anyhow::{Context, Result, ensure};
use regex_lite::Regex;
use xtask::machine::Machine;

use crate::case::{Case, Scene};
use crate::drive::Drive;
use crate::scenes::wait_until_over;

/// The first guest writes this to all of its RAM.
const PATTERN: &str = "OLDBYTES";
/// More memory of each, in KiB, which makes no whole block: the first guest takes it when
/// blocks have been zeroed ahead for it.
const MORE: u64 = 1536;

/// The cases. Each of the two guests has so much memory in whole blocks of 2 MiB, in MiB; that
/// above the first 16 is touched. QEMU zeroes faster than Bochs, and needs more of it.
pub(crate) fn cases() -> Vec<Case> {
    vec![fresh_case::<496>("svm", Machine::QemuSvm), fresh_case::<176>("vmx", Machine::BochsVmx)]
}

/// A case with this much memory.
fn fresh_case<const MIB: u64>(name: &str, machine: Machine) -> Case {
    let scene = Scene::Text(fresh_scene(MIB));
    let script = fresh::<MIB>;
    Case {
        machine,
        cpus: (2, 2),
        ..Case::scene(&format!("iso-fresh-memory-{name}"), scene, script)
    }
}

/// The two guests are there from the beginning; the first one's memory is free when the other
/// one goes to work, and is what it gets first.
fn fresh_scene(mib: u64) -> String {
    let memory = mib * 1024 + MORE;
    let guest = |name: &str, vcpus: u32| {
        format!(
            "[[guest]]\nname = \"{name}\"\nkernel = \"test:fresh\"\nmemory = \"{memory}K\"\n\
             vcpus = {vcpus}\ncmdline = \"{name} mib={mib} kib={MORE}\"\n"
        )
    };
    let (seek, fill) = (guest("seek", 2), guest("fill", 1));
    format!("[host]\ncpus = 2\nmemory = \"{}M\"\n{seek}{fill}", 2 * mib + 224)
}

/// No vCPU sees what an earlier guest left, by itself or through the hypervisor, while
/// another one touches the memory for the first time.
fn fresh<const MIB: u64>(drive: &mut Drive) -> Result<()> {
    drive.expect("fresh: ready", 120)?;
    let mut client = drive.client()?;
    wait_until_over(drive, &mut client, "fill", 120)?;
    drive.send("g");
    drive.expect("fresh: ", 120)?;
    drive.ends(0)?;
    let result = Regex::new(r"fresh: (\d+) blocks, (\d+) seen, (\d+) lost, (\d+) dirty")?;
    let found = result.captures(drive.text()).context("the guest gives no result")?;
    let result = found.get(0).map_or("", |line| line.as_str());
    let shown = drive.text().matches(PATTERN).count();
    let blocks = (MIB - 16) / 2;
    ensure!(
        result == format!("fresh: {blocks} blocks, 0 seen, 0 lost, 0 dirty") && shown == 0,
        "{result}; a console write showed the pattern {shown} times"
    );
    Ok(())
}
