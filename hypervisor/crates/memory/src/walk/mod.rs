//! The walk of a guest's own page tables, as its CPU would do it: from a linear
//! address to a guest-physical one or to the error code of the page fault that
//! the guest must see. Accessed and dirty bits are set as hardware sets them.
//!
//! Knows 32-bit paging with 4 MiB pages and PSE-36, PAE, and paging with four
//! and five levels; NX, WP, SMEP, SMAP, protection keys of user pages and
//! reserved bits. Protection keys of supervisor pages and shadow stacks are not
//! modelled, as no guest is offered them.
//!
//! SDM: "Paging"; APM: "Page Translation and Protection".

mod levels;
#[cfg(test)]
mod tests;

use bitflags::bitflags;
use levels::Shape;
use x86defs::addr::PAGE_SIZE;
use x86defs::pte::{PageFaultCode, Pte};
use x86defs::{Cr0, Cr4, Efer, GuestPhysAddr, GuestVirtAddr, Low, Rflags, Width};

/// Walks that are begun again because the guest changed an entry meanwhile.
const RETRIES: u32 = 16;

/// Page tables in the guest's memory.
pub trait GuestPageTables {
    /// Why memory could not be had.
    type Error;

    /// The naturally aligned entry of `width` (four or eight bytes) at `gpa`.
    ///
    /// # Errors
    /// There is no memory.
    fn read_entry(&mut self, gpa: GuestPhysAddr, width: Width) -> Result<u64, Self::Error>;

    /// The entries of `width` at these addresses, read in this order.
    ///
    /// # Errors
    /// There is no memory.
    fn read_entries<const N: usize>(
        &mut self,
        places: [GuestPhysAddr; N],
        width: Width,
    ) -> Result<[u64; N], Self::Error> {
        let mut entries = [0; N];
        for (entry, gpa) in entries.iter_mut().zip(places) {
            *entry = self.read_entry(gpa, width)?;
        }
        Ok(entries)
    }

    /// Replaces the entry by `new` if it is still `current`, in one atomic step,
    /// and returns what was there before. One that only looks, like a debugger,
    /// returns `current` and stores nothing.
    ///
    /// # Errors
    /// There is no memory, or it is read-only.
    fn compare_exchange(
        &mut self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Self::Error>;
}

bitflags! {
    /// Features of page tables that CPUID promised the guest.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WalkFeatures: u8 {
        /// Pages of 1 GiB.
        const PAGES_1G = 1 << 0;
    }
}

/// The registers of the vCPU that decide what a walk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkConfig {
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// RFLAGS, for AC.
    pub rflags: Rflags,
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    /// PKRU; zero where the guest has no protection keys.
    pub pkru: u32,
    /// Bits of a guest-physical address, 32 to 52.
    pub physical_bits: u8,
    /// Features of the guest's CPU.
    pub features: WalkFeatures,
}

/// Kind of an access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A read of data.
    Read,
    /// A write of data, or the read of a read-modify-write.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A read that the CPU does for itself, of a descriptor table or a TSS: with
    /// supervisor rights at any privilege level, whatever RFLAGS.AC says.
    SystemRead,
    /// A write that the CPU does for itself.
    SystemWrite,
}

impl Access {
    const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::SystemWrite)
    }

    const fn is_implicit(self) -> bool {
        matches!(self, Self::SystemRead | Self::SystemWrite)
    }

    const fn is_fetch(self) -> bool {
        matches!(self, Self::Fetch)
    }
}

/// Translation of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The byte's guest-physical address.
    pub gpa: GuestPhysAddr,
    /// Bytes in the page: 4 KiB, 2 MiB, 4 MiB or 1 GiB. Without paging 4 KiB.
    pub page_size: u64,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError<E> {
    /// The guest gets a page fault with this code, and CR2 = the address.
    PageFault(PageFaultCode),
    /// The address is not canonical: #GP, or #SS for an access by the stack.
    NonCanonical,
    /// Other vCPUs change the entries faster than they can be read: let the
    /// guest run the instruction again.
    Contended,
    /// The tables themselves could not be reached.
    Memory(E),
}

/// One entry that a walk went through.
#[derive(Clone, Copy, Debug)]
struct Step {
    gpa: GuestPhysAddr,
    entry: u64,
    /// Bits that the CPU sets in it when the walk succeeds.
    set: Pte,
}

/// The entries of a walk, from the top.
type Steps = [Option<Step>; 5];

/// Outcome of an attempt.
enum Attempt {
    Done(Translation, Steps),
    /// The guest changed an entry under our hands.
    Again,
}

/// Translates `gva` for `access`.
///
/// In PAE paging the four top entries are read from memory at each walk, as
/// AMD-V does below nested tables, not kept in registers.
///
/// # Errors
/// [`WalkError`]; then no accessed or dirty bit has been set by the walk that
/// failed.
pub fn walk<M: GuestPageTables>(
    config: &WalkConfig,
    mem: &mut M,
    gva: GuestVirtAddr,
    access: Access,
) -> Result<Translation, WalkError<M::Error>> {
    walk_steps(config, mem, gva, access).map(|(translation, _)| translation)
}

fn walk_steps<M: GuestPageTables>(
    config: &WalkConfig,
    mem: &mut M,
    gva: GuestVirtAddr,
    access: Access,
) -> Result<(Translation, Steps), WalkError<M::Error>> {
    let Some(shape) = Shape::of(config) else {
        let gpa = GuestPhysAddr::new(u64::from(gva.as_u64().low32()));
        return Ok((Translation { gpa, page_size: PAGE_SIZE }, [None; 5]));
    };
    // Four levels, the usual shape, are compiled as a constant.
    match shape {
        Shape::Four => walk_shape(config, Shape::Four, mem, gva, access),
        other => walk_shape(config, other, mem, gva, access),
    }
}

/// A walk that was made before, of one page and for one kind of access. To make it again costs
/// one look at each of its entries: with the same registers, entries that have not changed lead
/// to the same page. Nothing is taken from it that the tables in memory do not say now.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeptWalk(Option<Kept>);

#[derive(Clone, Copy, Debug)]
struct Kept {
    config: WalkConfig,
    access: Access,
    /// The page's linear address, and the translation of its first byte.
    page: u64,
    translation: Translation,
    width: Width,
    entries: [(GuestPhysAddr, u64); 5],
    count: usize,
}

impl KeptWalk {
    /// [`walk`], and keeps it.
    ///
    /// # Errors
    /// Those of [`walk`].
    pub fn walk<M: GuestPageTables>(
        &mut self,
        config: &WalkConfig,
        mem: &mut M,
        gva: GuestVirtAddr,
        access: Access,
    ) -> Result<Translation, WalkError<M::Error>> {
        let offset = gva.as_u64() % PAGE_SIZE;
        let page = gva.as_u64().wrapping_sub(offset);
        if let Some(kept) = &self.0
            && kept.page == page
            && kept.access == access
            && kept.config == *config
            && kept.holds(mem)
        {
            let Translation { gpa, page_size } = kept.translation;
            return Ok(Translation { gpa: gpa.wrapping_add(offset), page_size });
        }
        let (found, steps) = walk_steps(config, mem, gva, access)?;
        let mut entries = [(GuestPhysAddr::new(0), 0); 5];
        let mut count = 0usize;
        for (step, entry) in steps.iter().flatten().zip(entries.iter_mut()) {
            *entry = (step.gpa, step.entry | step.set.bits());
            count = count.saturating_add(1);
        }
        self.0 = Shape::of(config).map(|shape| Kept {
            config: *config,
            access,
            page,
            translation: Translation { gpa: found.gpa.align_down(PAGE_SIZE), ..found },
            width: shape.width(),
            entries,
            count,
        });
        Ok(found)
    }
}

impl Kept {
    /// Whether all entries are what they were. Memory that some of them were in, and which an
    /// earlier one does not lead to any more, may be gone.
    #[inline]
    fn holds<M: GuestPageTables>(&self, mem: &mut M) -> bool {
        self.compare(mem).unwrap_or(false)
    }

    #[inline]
    fn compare<M: GuestPageTables>(&self, mem: &mut M) -> Result<bool, M::Error> {
        let entries = self.entries.get(..self.count).unwrap_or_default();
        // Those of the usual shapes, all at once.
        match entries {
            [a, b, c, d] => {
                let found = mem.read_entries([a.0, b.0, c.0, d.0], self.width)?;
                return Ok(found == [a.1, b.1, c.1, d.1]);
            }
            [a, b, c] => {
                let found = mem.read_entries([a.0, b.0, c.0], self.width)?;
                return Ok(found == [a.1, b.1, c.1]);
            }
            _ => {}
        }
        for (gpa, entry) in entries {
            if mem.read_entry(*gpa, self.width)? != *entry {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[inline(always)]
fn walk_shape<M: GuestPageTables>(
    config: &WalkConfig,
    shape: Shape,
    mem: &mut M,
    gva: GuestVirtAddr,
    access: Access,
) -> Result<(Translation, Steps), WalkError<M::Error>> {
    if !shape.is_canonical(gva.as_u64()) {
        return Err(WalkError::NonCanonical);
    }
    for _ in 0..RETRIES {
        if let Attempt::Done(translation, steps) = attempt(config, shape, mem, gva, access)? {
            return Ok((translation, steps));
        }
    }
    Err(WalkError::Contended)
}

#[inline(always)]
fn attempt<M: GuestPageTables>(
    config: &WalkConfig,
    shape: Shape,
    mem: &mut M,
    gva: GuestVirtAddr,
    access: Access,
) -> Result<Attempt, WalkError<M::Error>> {
    let fault = |code: PageFaultCode| WalkError::PageFault(code | access_code(config, access));
    let common = shape.common(config);
    let mut steps: Steps = [None; 5];
    let mut flags = Pte::W | Pte::U;
    let mut table = shape.root(config.cr3);
    for (level, slot) in (1..=shape.levels()).rev().zip(steps.iter_mut()) {
        let gpa = shape.entry_address(table, gva.as_u64(), level);
        let entry = mem.read_entry(gpa, shape.width()).map_err(WalkError::Memory)?;
        let bits = Pte::from_bits_retain(entry);
        if !bits.contains(Pte::P) {
            return Err(fault(PageFaultCode::empty()));
        }
        if entry & shape.reserved(common, config, entry, level) != 0 {
            return Err(fault(PageFaultCode::P | PageFaultCode::RSVD));
        }
        let mut set = Pte::empty();
        if shape.has_rights(level) {
            flags = flags & (bits | !(Pte::W | Pte::U)) | bits & Pte::NX;
            let written = shape.is_leaf(config, entry, level) && access.is_write();
            set = if written { Pte::A | Pte::D } else { Pte::A };
        }
        *slot = Some(Step { gpa, entry, set });
        if !shape.is_leaf(config, entry, level) {
            table = shape.next(entry);
            continue;
        }
        let key = shape.key(config, entry);
        check(config, access, flags, key).map_err(fault)?;
        for step in steps.iter().flatten() {
            if !set_bits(shape, mem, step).map_err(WalkError::Memory)? {
                return Ok(Attempt::Again);
            }
        }
        let size = shape.page_size(level);
        let gpa = shape.page(entry, level) | gva.as_u64() & size.wrapping_sub(1);
        let translation = Translation { gpa: GuestPhysAddr::new(gpa), page_size: size };
        return Ok(Attempt::Done(translation, steps));
    }
    // The lowest level is always a leaf, so the loop never ends by itself.
    Ok(Attempt::Again)
}

/// Sets the bits of a step. `false`: the entry has changed.
#[inline(always)]
fn set_bits<M: GuestPageTables>(shape: Shape, mem: &mut M, step: &Step) -> Result<bool, M::Error> {
    let mut current = step.entry;
    for _ in 0..RETRIES {
        let new = current | step.set.bits();
        if new == current {
            return Ok(true);
        }
        let found = mem.compare_exchange(step.gpa, shape.width(), current, new)?;
        if found == current {
            return Ok(true);
        }
        // Another vCPU's walk may have set its bits meanwhile; more than that
        // is another entry.
        let noise = (Pte::A | Pte::D).bits();
        if (found ^ step.entry) & !noise != 0 {
            return Ok(false);
        }
        current = found;
    }
    Ok(false)
}

/// Whether the access is made with the rights of a user.
fn is_user(config: &WalkConfig, access: Access) -> bool {
    config.cpl == 3 && !access.is_implicit()
}

/// The part of the error code that describes the access.
fn access_code(config: &WalkConfig, access: Access) -> PageFaultCode {
    let mut code = PageFaultCode::empty();
    code.set(PageFaultCode::W, access.is_write());
    code.set(PageFaultCode::U, is_user(config, access));
    let nx = config.cr4.contains(Cr4::PAE) && config.efer.contains(Efer::NXE);
    code.set(PageFaultCode::I, access.is_fetch() && (nx || config.cr4.contains(Cr4::SMEP)));
    code
}

/// SDM: "Access Rights", "Determination of Access Rights"; the error is the
/// part of the code that describes the page.
fn check(config: &WalkConfig, access: Access, page: Pte, key: u8) -> Result<(), PageFaultCode> {
    let user = is_user(config, access);
    let user_page = page.contains(Pte::U);
    let write_protected = config.cr0.contains(Cr0::WP);
    let may = if user && !user_page {
        false
    } else if access.is_fetch() {
        !page.contains(Pte::NX) && (user || !user_page || !config.cr4.contains(Cr4::SMEP))
    } else {
        let override_smap = config.rflags.contains(Rflags::AC) && !access.is_implicit();
        let smap = !user && user_page && config.cr4.contains(Cr4::SMAP) && !override_smap;
        let writable = page.contains(Pte::W) || !user && !write_protected;
        !smap && (!access.is_write() || writable)
    };
    // SDM: "Protection Keys". Bits 2i and 2i+1 of PKRU: no access, no writes.
    let key_rights = config.pkru >> (2 * u32::from(key));
    let key_forbids = user_page
        && !access.is_fetch()
        && config.cr4.contains(Cr4::PKE)
        && config.efer.contains(Efer::LMA)
        && (key_rights & 1 != 0
            || key_rights & 2 != 0 && access.is_write() && (user || write_protected));
    match (may, key_forbids) {
        (true, false) => Ok(()),
        (_, true) => Err(PageFaultCode::P | PageFaultCode::PK),
        (false, false) => Err(PageFaultCode::P),
    }
}
