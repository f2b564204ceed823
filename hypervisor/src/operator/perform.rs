//! Requests of the operator, or of a program over the control line.

use super::{Leave, Operator, inspect};
use crate::cpu::asm;
use crate::machine::World;
use crate::machine::guest::{AnyGuest, Files};
use crate::{journal, mm};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::GuestSettings;
use control::answer::Verdict;
use control::protocol::EventKind;
use control::status::{Dump, ExitTrace, VcpuDump, WaitStatus};
use control::{Answer, ErrorCode, GuestRef, Known, Operation, Refusal};
use loader::e820;
use vmm::backend::Backend;
use vmm::lifecycle::Command;

impl Operator {
    /// Does what is asked for, or begins to. If a vCPU is [busy](ErrorCode::Busy), the request
    /// is to be tried again in the next step.
    pub(super) fn perform(
        &mut self,
        world: &'static World,
        operation: Operation,
    ) -> Result<Answer, Refusal> {
        match operation {
            Operation::Hello => Ok(Answer::Hello(self.control.hello())),
            Operation::List => Ok(Answer::Guests(self.list(world))),
            Operation::Attach(guest) => {
                let at = self.find(&guest)?;
                self.attach(at);
                self.one(world, at)
            }
            Operation::Pause(guest) => self.order(world, &guest, Command::Pause),
            Operation::Resume(guest) => self.order(world, &guest, Command::Resume),
            Operation::Stop { guest, seconds } => {
                self.order(world, &guest, Command::Stop(in_seconds(world, seconds)))
            }
            Operation::Kill(guest) => self.order(world, &guest, Command::Kill),
            Operation::Start(guest) => self.order(world, &guest, Command::Start),
            Operation::Restart { guest, seconds } => {
                self.order(world, &guest, Command::Restart(in_seconds(world, seconds)))
            }
            Operation::Stats(guest) => {
                let only = guest.map(|guest| self.find(&guest)).transpose()?;
                Ok(Answer::Stats(self.stats(world, only).into()))
            }
            Operation::Dump { guest, vcpu } => self.dump(world, &guest, vcpu),
            Operation::Trace { guest, vcpu } => self.trace(world, &guest, vcpu),
            Operation::Why(guest) => self.why(world, &guest),
            Operation::Memory => Ok(Answer::Memory(self.memory())),
            Operation::Cpus => Ok(Answer::Cpus(self.cpus(world))),
            Operation::Log(level) => {
                if let Ok(level) = level.as_str().parse() {
                    journal::set_level(level);
                }
                Ok(Answer::Done)
            }
            Operation::Reboot => {
                self.leave = Some(Leave::Reboot);
                Ok(Answer::Done)
            }
            Operation::PowerOff => {
                self.leave = Some(Leave::PowerOff);
                Ok(Answer::Done)
            }
            Operation::Events { since, max } => self.events.since(since, max).map(Answer::Events),
            Operation::UploadBegin { name, size, crc32 } => {
                self.control.uploads.begin(&name, size, crc32).map(Answer::Upload)
            }
            Operation::UploadChunk { name, offset, data, crc32 } => {
                self.control.uploads.chunk(&name, offset, &data, crc32).map(Answer::Upload)
            }
            Operation::UploadEnd { name } => {
                let state = self.control.uploads.end(&name)?;
                let what = EventKind::Uploaded { name };
                self.events.push(world.nanos(asm::rdtsc()), None, what);
                Ok(Answer::Upload(state))
            }
            Operation::UploadDelete { name } => {
                self.control.uploads.delete(&name)?;
                let what = EventKind::UploadDeleted { name };
                self.events.push(world.nanos(asm::rdtsc()), None, what);
                Ok(Answer::Done)
            }
            Operation::Define(settings) => self.define_uploaded(world, *settings),
            Operation::Delete(guest) => {
                let at = self.find(&guest)?;
                self.command(world, at, Command::Delete)?;
                Ok(Answer::Done)
            }
            Operation::DryRun(settings) => Ok(Answer::Verdict(self.dry_run(world, &settings))),
        }
    }

    /// The place of the guest that is meant.
    pub(super) fn find(&self, guest: &GuestRef) -> Result<usize, Refusal> {
        let number = guest.resolve(&self.known())?;
        self.at(number).ok_or_else(|| Refusal::new(ErrorCode::Internal, "the guest is gone"))
    }

    /// The guests' names and numbers.
    pub(super) fn known(&self) -> Vec<Known<'_>> {
        let known = |r: &'_ super::Record| r.number;
        self.records
            .iter()
            .map(|record| Known { number: known(record), name: &record.settings.name })
            .collect()
    }

    fn one(&self, world: &World, at: usize) -> Result<Answer, Refusal> {
        let record = self.records.get(at);
        let record =
            record.ok_or_else(|| Refusal::new(ErrorCode::Internal, "the guest is gone"))?;
        Ok(Answer::Guest(self.info(world, record).into()))
    }

    fn order(
        &mut self,
        world: &'static World,
        guest: &GuestRef,
        command: Command,
    ) -> Result<Answer, Refusal> {
        let at = self.find(guest)?;
        self.command(world, at, command)?;
        self.one(world, at)
    }

    /// The guest that is meant, which must be there.
    fn there(&self, guest: &GuestRef) -> Result<(usize, Arc<AnyGuest>), Refusal> {
        let at = self.find(guest)?;
        let record = self.records.get(at);
        let there = record.and_then(|record| record.guest()).map(Arc::clone);
        let there = there.ok_or_else(|| {
            let message = format!("guest {guest} does not run: start it first");
            Refusal::new(ErrorCode::WrongState, message)
        })?;
        Ok((at, there))
    }

    fn dump(&self, world: &World, guest: &GuestRef, vcpu: Option<u32>) -> Result<Answer, Refusal> {
        let (_, guest) = self.there(guest)?;
        let dumps = chosen(&guest, vcpu)?.map(|index| {
            with_vcpu(world, &guest, index, |vcpu| {
                let mut text = alloc::string::String::new();
                // Writing to a string does not fail.
                let _ = vcpu.dump(&mut text);
                let _ = inspect::code(vcpu, &guest.vm.memory, &mut text);
                VcpuDump { index: number(index), text }
            })
        });
        let vcpus = dumps.collect::<Result<_, _>>()?;
        Ok(Answer::Dump(Dump { name: guest.vm.name.clone(), vcpus }))
    }

    fn trace(&self, world: &World, guest: &GuestRef, vcpu: Option<u32>) -> Result<Answer, Refusal> {
        let (_, guest) = self.there(guest)?;
        let traces = chosen(&guest, vcpu)?.map(|index| {
            with_vcpu(world, &guest, index, |vcpu| {
                inspect::trace(vcpu, world.boot.tsc, world.scale)
            })
        });
        let vcpus = traces.collect::<Result<_, _>>()?;
        Ok(Answer::Trace(ExitTrace { name: guest.vm.name.clone(), vcpus }))
    }

    fn why(&self, world: &World, guest: &GuestRef) -> Result<Answer, Refusal> {
        let (at, guest) = self.there(guest)?;
        let state = self.records.get(at).map_or_else(|| super::status::GONE, super::status::state);
        let waits = chosen(&guest, None)?.map(|index| {
            let running = guest.places.cpu(index).is_some();
            let now = asm::rdtsc();
            let left = guest.vcpus.published(index).map_or(now, |vcpu| vcpu.left);
            let for_ns = world.scale.nanos(now.saturating_sub(left));
            let mut wait = with_vcpu(world, &guest, index, |vcpu| {
                inspect::wait(vcpu, &guest.vm, now, world.scale, for_ns)
            })?;
            if running {
                wait.activity = control::status::VcpuActivity::Running;
            }
            Ok(wait)
        });
        let vcpus = waits.collect::<Result<_, _>>()?;
        let (pins, pics) = inspect::controllers(&guest.vm.fabric.lines());
        Ok(Answer::Why(WaitStatus { name: guest.vm.name.clone(), state, vcpus, pins, pics }))
    }

    /// Knows a guest that is made of uploads.
    fn define_uploaded(
        &mut self,
        world: &World,
        settings: GuestSettings,
    ) -> Result<Answer, Refusal> {
        self.check(&settings)?;
        let names: Vec<_> = file_names(&settings).map(ToString::to_string).collect();
        let mut files = Vec::new();
        for name in &names {
            files.push((name.clone(), Arc::clone(self.control.uploads.complete(name)?)));
        }
        let at = self.define(world, settings, Files::Uploads(files))?;
        self.control.uploads.hold(names.iter().map(|name| name.as_str()))?;
        self.one(world, at)
    }

    fn check(&self, settings: &GuestSettings) -> Result<(), Refusal> {
        let bad = |message| Refusal::new(ErrorCode::BadArgument, message);
        for name in file_names(settings) {
            self.control.uploads.complete(name)?;
        }
        let files: BTreeSet<&str> = self.control.uploads.names().collect();
        settings.check(&files).map_err(|fault| bad(fault.to_string()))
    }

    /// A guest is no longer known: its files may go.
    pub(super) fn forget(&mut self, at: usize) {
        let Some(record) = self.records.get(at) else { return };
        if let Files::Uploads(files) = &record.files {
            self.control.uploads.let_go(files.iter().map(|(name, _)| name.as_str()));
        }
        if self.terminal.shows(record.number) {
            self.terminal.pass(&record.console.detach());
            self.terminal.show_monitor();
        }
    }

    /// Could this guest be defined and started now?
    fn dry_run(&self, world: &World, settings: &GuestSettings) -> Verdict {
        let no = |reason| Verdict { possible: false, reason };
        if let Err(refusal) = self.check(settings) {
            return no(refusal.message);
        }
        if self.records.iter().any(|record| record.settings.name == settings.name) {
            return no(format!("there is a guest \"{}\" already", settings.name));
        }
        let cpus = world.scheduler.lock().cpus();
        if settings.cpus().iter().all(|cpu| !cpus.contains(cpu)) {
            return no(format!(
                "affinity: this machine has the CPUs 0 to {}",
                cpus.iter().count() - 1
            ));
        }
        let left = mm::frame_counts().spare();
        let wanted = mm::guest::frames_needed(&e820::ram_regions(settings.memory));
        if wanted > left {
            return no(format!(
                "it takes {} MiB with its page tables, and {} MiB are free",
                wanted / 256,
                left / 256
            ));
        }
        let reason = format!("{} of {} MiB that are free", wanted / 256, left / 256);
        Verdict { possible: true, reason }
    }
}

/// The files that a guest is made of.
fn file_names(settings: &GuestSettings) -> impl Iterator<Item = &str> {
    let modules = settings.modules.iter().map(|module| module.file.as_str());
    core::iter::once(settings.kernel.as_str()).chain(settings.initrd.as_deref()).chain(modules)
}

fn in_seconds(world: &World, seconds: u32) -> u64 {
    asm::rdtsc().saturating_add(u64::from(seconds).saturating_mul(world.frequency.hz()))
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Indices of the vCPUs that are asked for: one, or all.
fn chosen(guest: &AnyGuest, vcpu: Option<u32>) -> Result<core::ops::Range<usize>, Refusal> {
    let count = guest.vcpus.count();
    let Some(vcpu) = vcpu else { return Ok(0..count) };
    let index = usize::try_from(vcpu).ok().filter(|index| *index < count).ok_or_else(|| {
        let message = format!("there is no vCPU {vcpu}: it has 0 to {}", count - 1);
        Refusal::new(ErrorCode::NoVcpu, message)
    })?;
    Ok(index..index + 1)
}

fn with_vcpu<R>(
    world: &World,
    guest: &AnyGuest,
    index: usize,
    look: impl FnOnce(&mut vmm::vcpu::Vcpu<dyn Backend>) -> R,
) -> Result<R, Refusal> {
    guest.with_vcpu(index, world.reach(), look).ok_or_else(|| {
        let message = format!("vCPU {index} is busy: it does not leave its CPU; ask again");
        Refusal::new(ErrorCode::Busy, message)
    })
}
