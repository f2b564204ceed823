//! The start of a guest: done by a service of its own, step by step, so that
//! nobody else waits for it, and charged to the guest.

use super::build::{Assembly, lay_out, refused, reserve};
use super::{AnyGuest, Guest, Names, Slots};
#[cfg(feature = "check-entries")]
use super::{exchange, violations};
use crate::cpu::asm;
use crate::error::HostError;
use crate::hw::VendorCpu;
#[cfg(feature = "check-entries")]
use crate::journal::{self, Status};
use crate::machine::console::Console;
use crate::machine::world::World;
use crate::mm::guest::{GuestSpace, Reservation};
use crate::mm::upload::{self, FileMemory};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::bundle::Bundle;
#[cfg(feature = "check-entries")]
use config::layout::TABLES_START;
use config::{GuestSettings, Populate};
use core::sync::atomic::{AtomicBool, Ordering};
use loader::Loading;
use locks::Rank;
#[cfg(feature = "check-entries")]
use memory::GuestMemory;
use service::Stop;
use spin::Mutex;
use x86defs::{CpuState, GuestPhysAddr};

/// Bytes of a kernel that are looked at or copied in one piece: some ten microseconds.
const PIECE: usize = 16 << 10;

/// Source of a guest's files.
#[derive(Clone, Debug)]
pub(crate) enum Files {
    /// In the bundle.
    Bundle(Bundle<'static>),
    /// Uploads, by name.
    Uploads(Vec<(String, Arc<FileMemory>)>),
    /// None: the memory of a guest before, and its machine, as it was saved.
    #[cfg(feature = "check-entries")]
    Saved(Arc<GuestSpace>, Arc<Vec<u8>>),
}

impl Files {
    fn find(&self, name: &str) -> Option<&[u8]> {
        match self {
            Self::Bundle(bundle) => bundle.file(name),
            Self::Uploads(files) => {
                files.iter().find(|(known, _)| known == name).map(|(_, file)| file.bytes())
            }
            #[cfg(feature = "check-entries")]
            Self::Saved(..) => None,
        }
    }
}

/// Work that is left.
enum Work<C: VendorCpu> {
    Reserve,
    /// The guest's RAM is set aside, but not all of its page tables.
    SetAside(Reservation),
    LayOut(Reservation),
    /// The kernel's checksum, before anything is written.
    Check(Arc<GuestSpace>, Loading<'static>),
    Write(Arc<GuestSpace>, Loading<'static>),
    /// From this address on.
    Populate(Arc<GuestSpace>, CpuState, GuestPhysAddr),
    Assemble(Box<Assembly<C>>),
    /// It failed: RAM from this address on is still to be given back.
    GiveBack(Arc<GuestSpace>, GuestPhysAddr, HostError),
    Done(Result<Arc<Guest<Slots<C>>>, HostError>),
    /// The result was taken.
    Over,
}

impl<C: VendorCpu> Work<C> {
    /// The guest's memory, while nobody else gives it back.
    fn space(&self) -> Option<&Arc<GuestSpace>> {
        match self {
            Self::Check(space, _) | Self::Write(space, _) | Self::Populate(space, ..) => {
                Some(space)
            }
            Self::Assemble(assembly) => Some(assembly.space()),
            _ => None,
        }
    }
}

/// The start of a guest, whatever the vendor of its vCPUs.
pub(crate) trait Start: Send + Sync {
    /// Starts no further. The result comes all the same.
    fn cancel(&self);

    /// The result of the start, given once.
    fn result(&self) -> Option<Result<Arc<AnyGuest>, HostError>>;

    /// The vCPUs of the guest that was made may run: the scheduler knows them.
    fn admit(&self);
}

/// Function that lets the vCPUs of a guest run.
type Admit<C> = Box<dyn Fn(&Arc<Guest<Slots<C>>>) + Send + Sync>;

/// See the [module](self).
pub(crate) struct Starter<C: VendorCpu> {
    // First, as it borrows from what stands below.
    work: locks::Mutex<Work<C>>,
    world: &'static World,
    /// Lets the vCPUs of the guest run.
    admit: Admit<C>,
    settings: Arc<GuestSettings>,
    files: Files,
    console: Arc<Console>,
    names: Names,
    cancelled: AtomicBool,
    /// The guest, from its result to its admission.
    made: Mutex<Option<Arc<Guest<Slots<C>>>>>,
}

impl<C: VendorCpu> Start for Starter<C> {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        *self.made.lock() = None;
    }

    fn result(&self) -> Option<Result<Arc<AnyGuest>, HostError>> {
        let mut work = self.work.try_lock()?;
        if !matches!(*work, Work::Done(_)) {
            return None;
        }
        let Work::Done(result) = core::mem::replace(&mut *work, Work::Over) else { return None };
        Some(result.map(|guest| {
            *self.made.lock() = Some(Arc::clone(&guest));
            let guest: Arc<AnyGuest> = guest;
            guest
        }))
    }

    fn admit(&self) {
        let made = self.made.lock().take();
        if let Some(guest) = made {
            (self.admit)(&guest);
            // Requests may wait in the mailbox of each vCPU.
            #[cfg(feature = "check-entries")]
            if let Files::Saved(..) = self.files {
                guest.entities().for_each(|entity| self.world.wake(entity, sched::Reason::Other));
            }
        }
    }
}

impl<C: VendorCpu> Starter<C> {
    pub(crate) fn new(
        world: &'static World,
        admit: Admit<C>,
        settings: Arc<GuestSettings>,
        files: Files,
        console: Arc<Console>,
        names: Names,
    ) -> Self {
        let (work, made) = (locks::Mutex::new(Rank::Life, Work::Reserve), Mutex::new(None));
        let cancelled = AtomicBool::new(false);
        Self { work, world, admit, settings, files, console, names, cancelled, made }
    }

    /// The guest's name.
    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    /// Works until the tick `until`.
    pub(crate) fn step(&self, vendor: &C, until: u64) -> Stop {
        let mut work = self.work.lock();
        upload::settle();
        loop {
            if matches!(*work, Work::Done(_) | Work::Over) {
                drop(work);
                self.world.note(self.names.place);
                return Stop::Blocked;
            }
            let now = core::mem::replace(&mut *work, Work::Over);
            let space = now.space().map(Arc::clone);
            *work = self.piece(now, vendor).unwrap_or_else(|error| match space {
                Some(space) => Work::GiveBack(space, GuestPhysAddr::new(0), error),
                None => Work::Done(Err(error)),
            });
            if asm::rdtsc() >= until && !matches!(*work, Work::Done(_)) {
                return Stop::Ready;
            }
        }
    }

    fn piece(&self, work: Work<C>, vendor: &C) -> Result<Work<C>, HostError> {
        let world = self.world;
        let fail = |why: String| HostError::Guest { guest: self.settings.name.clone(), why };
        if let Work::GiveBack(space, at, error) = work {
            return Ok(match space.release_from(at) {
                Some(next) => Work::GiveBack(space, next, error),
                None => Work::Done(Err(error)),
            });
        }
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(fail("its start was cancelled".into()));
        }
        Ok(match work {
            #[cfg(feature = "check-entries")]
            Work::Reserve if let Files::Saved(space, _) = &self.files => {
                // The RAM is there already.
                let end = GuestPhysAddr::new(u64::MAX);
                Work::Populate(Arc::clone(space), CpuState::reset_vector(0), end)
            }
            Work::Reserve => Work::SetAside(reserve(&self.settings)?),
            Work::SetAside(mut reservation) => match reservation.step()? {
                true => Work::SetAside(reservation),
                false => Work::LayOut(reservation),
            },
            Work::LayOut(reservation) => {
                let file = |name: &str| self.files.find(name);
                let (space, loading) = lay_out::<C>(&self.settings, reservation, &file)?;
                // SAFETY: it borrows from the settings and the files, which `self`
                // owns, does not change, and drops after it.
                let loading =
                    unsafe { core::mem::transmute::<Loading<'_>, Loading<'static>>(loading) };
                Work::Check(space, loading)
            }
            Work::Check(space, mut loading) => {
                if loading.check(PIECE).map_err(|error| refused(&self.settings, &error))? {
                    return Ok(Work::Check(space, loading));
                }
                Work::Write(space, loading)
            }
            Work::Write(space, mut loading) => {
                // Memory that is written to is zeroed first: in pieces of its own.
                if space.prepare() {
                    return Ok(Work::Write(space, loading));
                }
                if loading.write(&space, PIECE).map_err(|error| fail(error.to_string()))? {
                    return Ok(Work::Write(space, loading));
                }
                space.seal_rom().map_err(|error| fail(error.to_string()))?;
                let state = loading.state().clone();
                Work::Populate(space, state, GuestPhysAddr::new(0))
            }
            Work::Populate(space, state, at) => {
                if space.prepare() {
                    return Ok(Work::Populate(space, state, at));
                }
                if self.settings.populate == Populate::UpFront
                    && let Some(next) =
                        space.populate_from(at).map_err(|error| fail(error.to_string()))?
                {
                    return Ok(Work::Populate(space, state, next));
                }
                let (settings, console) = (&self.settings, &self.console);
                let assembly = Assembly::new(world, vendor, settings, console, space, state)?;
                Work::Assemble(Box::new(assembly))
            }
            Work::Assemble(mut assembly) => {
                if assembly.add_vcpu(vendor)? {
                    return Ok(Work::Assemble(assembly));
                }
                let guest = assembly.finish(world, self.names);
                #[cfg(feature = "check-entries")]
                if let Files::Saved(_, saved) = &self.files {
                    exchange::restore(&guest, saved, world).map_err(|e| fail(e.to_string()))?;
                } else {
                    self.break_rules(vendor, &guest);
                }
                Work::Done(Ok(guest))
            }
            over @ (Work::GiveBack(..) | Work::Done(_) | Work::Over) => over,
        })
    }

    /// Does what the guest's command line asks of it in place of a start, for tests: enters it
    /// with one broken rule after the other, or violates the hypervisor's own rights.
    #[cfg(feature = "check-entries")]
    fn break_rules(&self, vendor: &C, guest: &Guest<Slots<C>>) {
        if self.cancelled.load(Ordering::Relaxed) {
            return;
        }
        let cmdline = &self.settings.cmdline;
        if crate::hw::broken::requested(cmdline).is_some() {
            let slice = self.world.poll_interval();
            let plan = crate::hw::broken::Plan { cmdline, slice };
            // Nobody runs it yet.
            if let Some(mut private) =
                guest.vcpus.0.first().and_then(|slot| slot.private.try_lock())
            {
                let vcpu = &mut private.vcpu;
                guest.vm.memory.enter(|| {
                    vendor.load(&mut vcpu.hw, &vcpu.core, true);
                    vcpu.settle();
                    C::try_broken(&mut vcpu.hw, &mut vcpu.core, plan);
                    C::unload(&mut vcpu.hw);
                });
            }
            let name = &guest.vm.name;
            journal::end(Status::OK, format_args!("guest {name} powered off"));
        }
        if let Some(name) = violations::requested(cmdline) {
            guest.vm.memory.enter(|| {
                // The window shows it from then on.
                let _ = guest.vm.memory.read(GuestPhysAddr::new(TABLES_START), &mut [0]);
                violations::commit(name)
            })
        }
    }
}
