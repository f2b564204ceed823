//! The vCPUs and services that the scheduler's names stand for.

use super::console::Console;
use super::guest::{AnyGuest, Files, Guest, Names, Reclaim, Slots, Start, Starter};
use super::world::{World, send};
use crate::cpu::asm;
use crate::hw::VendorCpu;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::GuestSettings;
use sched::{EntityId, Kind, Reason, SchedError};
use service::Service;
use spin::RwLock;

/// Work that the scheduler gives to a CPU.
pub(super) enum Runner<C: VendorCpu> {
    /// A vCPU.
    Vcpu(Arc<Guest<Slots<C>>>, usize),
    /// The start of a guest.
    Starter(Arc<Starter<C>>),
    /// Another service.
    Service(Arc<dyn Service>),
}

impl<C: VendorCpu> Clone for Runner<C> {
    fn clone(&self) -> Self {
        match self {
            Self::Vcpu(guest, index) => Self::Vcpu(Arc::clone(guest), *index),
            Self::Starter(starter) => Self::Starter(Arc::clone(starter)),
            Self::Service(service) => Self::Service(Arc::clone(service)),
        }
    }
}

/// The machine, with CPUs of one vendor.
pub(crate) struct Machine<C: VendorCpu> {
    pub(crate) world: &'static World,
    runners: RwLock<BTreeMap<EntityId, Runner<C>>>,
    /// The guests that exist.
    guests: RwLock<Vec<Arc<AnyGuest>>>,
}

/// The machine, whatever the vendor of its CPUs.
pub(crate) trait AnyMachine: Sync {
    /// The part that all CPUs share.
    fn world(&self) -> &'static World;

    /// `entity` is to be this service.
    fn serve(&self, entity: EntityId, service: Arc<dyn Service>);

    /// `entity` is to be the start of a guest.
    fn start(
        &'static self,
        entity: EntityId,
        names: Names,
        settings: Arc<GuestSettings>,
        files: Files,
        console: Arc<Console>,
    ) -> Arc<dyn Start>;

    /// The vCPUs and services of a guest that no CPU runs are not scheduled any more; others of it
    /// may be, even if it was paused.
    fn unschedule(&self, guest: &AnyGuest);

    /// `entity` is nothing any more.
    fn forget(&self, entity: EntityId);

    /// The vCPUs of a guest that no CPU runs are not scheduled any more. A service in their place
    /// gives back what the guest has; its name in the scheduler comes with it.
    ///
    /// # Errors
    /// The scheduler has no room for the service now. The call may be made again.
    fn reclaim(&self, guest: &Arc<AnyGuest>) -> Result<(EntityId, Arc<Reclaim>), SchedError>;

    /// The guest at this place of those that exist.
    fn guest(&self, at: usize) -> Option<Arc<AnyGuest>>;

    /// The name of what `entity` is.
    fn name_of(&self, entity: EntityId) -> Option<String>;
}

impl<C: VendorCpu> AnyMachine for Machine<C> {
    fn world(&self) -> &'static World {
        self.world
    }

    fn serve(&self, entity: EntityId, service: Arc<dyn Service>) {
        self.runners.write().insert(entity, Runner::Service(service));
    }

    fn start(
        &'static self,
        entity: EntityId,
        names: Names,
        settings: Arc<GuestSettings>,
        files: Files,
        console: Arc<Console>,
    ) -> Arc<dyn Start> {
        let admit = Box::new(|guest: &Arc<Guest<Slots<C>>>| self.admit(guest));
        let starter = Arc::new(Starter::new(self.world, admit, settings, files, console, names));
        self.runners.write().insert(entity, Runner::Starter(Arc::clone(&starter)));
        self.world.wake(entity, Reason::Other);
        starter
    }

    fn unschedule(&self, guest: &AnyGuest) {
        let mut scheduler = self.world.scheduler.lock();
        let now = asm::rdtsc();
        for entity in guest.entities() {
            // At a second call they are gone already.
            if let Ok(kicks) = scheduler.remove(entity, now) {
                send(kicks);
            }
        }
        let resumed = scheduler.resume(guest.id, now);
        drop(scheduler);
        if let Ok(kicks) = resumed {
            send(kicks);
        }
        let mut runners = self.runners.write();
        for entity in guest.entities() {
            runners.remove(&entity);
        }
        drop(runners);
        self.guests.write().retain(|other| other.id != guest.id);
    }

    fn forget(&self, entity: EntityId) {
        self.runners.write().remove(&entity);
    }

    fn reclaim(&self, guest: &Arc<AnyGuest>) -> Result<(EntityId, Arc<Reclaim>), SchedError> {
        // A paused guest, too, must be able to work on its own end.
        self.unschedule(guest);
        let cpus = guest.settings.cpus();
        let mut scheduler = self.world.scheduler.lock();
        let added = scheduler.add(guest.id, Kind::Service, cpus, asm::rdtsc());
        drop(scheduler);
        let entity = added?;
        let reclaim = Arc::new(Reclaim::new(Arc::clone(guest), self.world));
        self.serve(entity, Arc::<Reclaim>::clone(&reclaim));
        self.world.wake(entity, Reason::Other);
        Ok((entity, reclaim))
    }

    fn guest(&self, at: usize) -> Option<Arc<AnyGuest>> {
        self.guests.read().get(at).map(Arc::clone)
    }

    fn name_of(&self, entity: EntityId) -> Option<String> {
        Some(match self.runner(entity)? {
            Runner::Vcpu(guest, index) => format!("{}/{index}", guest.vm.name),
            Runner::Starter(starter) => format!("{}/start", starter.name()),
            Runner::Service(service) => service.name().into(),
        })
    }
}

impl<C: VendorCpu> Machine<C> {
    pub(super) fn new(world: &'static World) -> Self {
        Self { world, runners: RwLock::new(BTreeMap::new()), guests: RwLock::new(Vec::new()) }
    }

    pub(super) fn runner(&self, entity: EntityId) -> Option<Runner<C>> {
        self.runners.read().get(&entity).cloned()
    }

    /// A guest's vCPUs may run.
    pub(super) fn admit(&self, guest: &Arc<Guest<Slots<C>>>) {
        // The wall clock may have become known better since the guest was made.
        guest.correct_time(self.world);
        if let Some(offset) = guest.vm.clock.read().offset() {
            let begun = offset.wrapping_neg();
            log::debug!("guest \"{}\": its time began at the tick {begun}", guest.vm.name);
        }
        {
            let mut runners = self.runners.write();
            for (index, entity) in guest.places.entities().enumerate() {
                runners.insert(entity, Runner::Vcpu(Arc::clone(guest), index));
            }
            for service in guest.services.each() {
                if let Some(entity) = service.entity() {
                    runners.insert(entity, Runner::Service(service.service()));
                }
            }
        }
        let any: Arc<AnyGuest> = Arc::<Guest<Slots<C>>>::clone(guest);
        self.guests.write().push(any);
        if let Some(first) = guest.places.entity(0) {
            self.world.wake(first, Reason::Other);
        }
    }
}
