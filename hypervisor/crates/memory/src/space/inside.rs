//! The part of a guest's memory that stands behind its lock.

use super::Tree;
use crate::backing::{BLOCK, Backing, Held};
use crate::holdings::{Holdings, order};
use crate::limbo::Limbo;
use crate::slots::{Region, Regions, Rights, Slot, find};
use crate::stage2::{
    Attributes, Format, HostTable, MapErrorKind, Mapper, NestedTables, PageSize, Permissions,
    TableMemory,
};
use crate::transfer::{Access, Populated};
use crate::{MemoryError, Window};
use alloc::vec::Vec;
use core::ops::Range;
use x86defs::addr::{Hfn, PAGE_SIZE};
use x86defs::{GuestPhysAddr, HostPhysAddr};

/// The parts of a guest's memory, before there is a region.
#[derive(Debug)]
pub struct Parts<T> {
    /// Memory of the page tables.
    pub tables: T,
    /// The window's tree.
    pub window: Mapper<HostTable>,
    /// The place of the window.
    pub at: Window,
    /// The guest's tree.
    pub nested: NestedTables,
    /// Room for what the guest may have.
    pub backing: Backing,
    /// The guest's frames.
    pub holdings: Holdings,
}

/// A page that is nobody's RAM, which the guest sees at each address of a range.
#[derive(Debug)]
struct Fixed {
    range: Range<u64>,
    page: HostPhysAddr,
    permissions: Permissions,
}

/// A guest's memory behind its lock.
#[derive(Debug)]
pub struct Inside<T> {
    pub(super) parts: Parts<T>,
    pub(super) slots: Vec<Slot>,
    pub(super) regions: Regions,
    pub(super) limbo: Limbo,
    pub(super) closed: bool,
    fixed: Vec<Fixed>,
    /// Pages that are neither RAM nor tables.
    own: Vec<HostPhysAddr>,
}

/// The memory behind a page.
pub(super) enum Found {
    /// The frame of 4 KiB, and the size of what it was given as.
    Backed(HostPhysAddr, PageSize),
    /// None yet; a page of this size could be given.
    Nothing(PageSize),
}

impl<T: TableMemory> Inside<T> {
    /// Of these parts, without a region.
    #[must_use]
    pub fn new(parts: Parts<T>) -> Self {
        Self {
            parts,
            slots: Vec::new(),
            regions: Regions::new(),
            limbo: Limbo::default(),
            closed: false,
            fixed: Vec::new(),
            own: Vec::new(),
        }
    }

    /// The parts, to look at.
    pub const fn parts(&self) -> &Parts<T> {
        &self.parts
    }

    /// The guest's frames.
    #[inline(always)]
    pub const fn holdings(&mut self) -> &mut Holdings {
        &mut self.parts.holdings
    }

    /// The region at `gpa`, if the access is allowed there.
    pub(super) fn region(&self, gpa: GuestPhysAddr, access: Access) -> Result<Region, MemoryError> {
        let region = find(&self.regions, gpa.as_u64()).filter(|_| !self.closed);
        let region = region.ok_or(MemoryError::NotRam(gpa))?;
        match (region.rights, access) {
            (Rights::Rom, Access::Write) => Err(MemoryError::ReadOnly(gpa)),
            _ => Ok(region),
        }
    }

    /// The memory behind the page at `gpa`, which lies in `region`.
    pub(super) fn found(&self, gpa: GuestPhysAddr, region: &Region) -> Found {
        let place = region.place(gpa.align_down(PAGE_SIZE).as_u64());
        match self.parts.backing.held(place) {
            Held::Block(block) => {
                Found::Backed(block.wrapping_add(place % BLOCK), PageSize::Size2M)
            }
            Held::Table(table) => match Backing::frame(&self.parts.tables, table, place) {
                Some(frame) => Found::Backed(frame, PageSize::Size4K),
                None => Found::Nothing(PageSize::Size4K),
            },
            Held::Nothing if region.holds_whole(gpa.as_u64(), BLOCK) => {
                Found::Nothing(PageSize::Size2M)
            }
            Held::Nothing => Found::Nothing(PageSize::Size4K),
        }
    }

    /// Makes `tree` show the frame `hpa` at `gpa`, in `region`: with all of its block, where it
    /// came with one that lies in the region.
    pub(super) fn show(
        &mut self,
        gpa: GuestPhysAddr,
        region: &Region,
        (hpa, size): (HostPhysAddr, PageSize),
        tree: Tree,
    ) -> Result<Populated, MemoryError> {
        let attributes = tree.attributes(region.rights);
        if size == PageSize::Size2M && region.holds_whole(gpa.as_u64(), BLOCK) {
            let block = (gpa.align_down(BLOCK), hpa.align_down(BLOCK));
            match self.place(tree, block, PageSize::Size2M, attributes) {
                // There are small pages of it; or the block itself.
                Err(MapErrorKind::AlreadyMapped) => {}
                result => return result.map(|()| Populated::Now).map_err(|_| self.no_table(gpa)),
            }
        }
        let page = (gpa.align_down(PAGE_SIZE), hpa);
        match self.place(tree, page, PageSize::Size4K, attributes) {
            Ok(()) => Ok(Populated::Now),
            Err(MapErrorKind::AlreadyMapped) => Ok(Populated::Before),
            Err(_) => Err(self.no_table(gpa)),
        }
    }

    /// There is no frame for a table at `gpa`. Where some wait in limbo, the guest is to try again:
    /// its CPU pays what it owes for them first.
    fn no_table(&self, gpa: GuestPhysAddr) -> MemoryError {
        if self.limbo.is_empty() { MemoryError::NoFrame(gpa) } else { MemoryError::Moved(gpa) }
    }

    fn place(
        &mut self,
        tree: Tree,
        (gpa, hpa): (GuestPhysAddr, HostPhysAddr),
        size: PageSize,
        attributes: Attributes,
    ) -> Result<(), MapErrorKind<T::Error>> {
        let Parts { tables, window, at, nested, .. } = &mut self.parts;
        match tree {
            Tree::Nested => nested.place(tables, gpa.as_u64(), hpa, size, attributes),
            Tree::Window => {
                let at = at.at(gpa, size.bytes()).ok_or(MapErrorKind::OutOfRange)?;
                window.place(tables, at, hpa, size, attributes)
            }
        }
    }

    /// Puts a block that was zeroed ahead behind the 2 MiB around `gpa`, in `region`. `false`:
    /// there is none, or something was there.
    pub(super) fn put_ready(&mut self, gpa: GuestPhysAddr, region: &Region) -> bool {
        let Parts { backing, holdings, .. } = &mut self.parts;
        let Some(block) = holdings.ready() else { return false };
        let put = backing.put_block(region.place(gpa.align_down(BLOCK).as_u64()), block.base());
        if put {
            holdings.ready_shown();
        }
        put
    }

    /// Does the work of [`touch`](super::touch).
    #[inline(always)]
    pub(super) fn touch(&mut self, gpa: GuestPhysAddr, region: &Region) -> bool {
        match &mut self.parts {
            Parts { tables, nested: NestedTables::Npt(nested), backing, holdings, .. } => {
                touch_in(nested, (tables, backing, holdings), gpa, region)
            }
            Parts { tables, nested: NestedTables::Ept(nested), backing, holdings, .. } => {
                touch_in(nested, (tables, backing, holdings), gpa, region)
            }
        }
    }

    /// Makes sure that single frames can be put behind pages around `place`, where no block is.
    pub(super) fn make_table(&mut self, place: u64) -> bool {
        let Parts { tables, backing, .. } = &mut self.parts;
        match backing.held(place) {
            Held::Table(_) => true,
            Held::Block(_) => false,
            Held::Nothing => {
                let Ok(table) = tables.alloc_table() else { return false };
                backing.put_table(place, table)
            }
        }
    }

    /// Puts frames behind the page of this size at `place`. `false`: something is there.
    pub(super) fn put(&mut self, place: u64, first: Hfn, size: PageSize) -> bool {
        let Parts { tables, backing, .. } = &mut self.parts;
        match (size, backing.held(place)) {
            (PageSize::Size2M, Held::Nothing) => backing.put_block(place, first.base()),
            (PageSize::Size4K, Held::Table(table)) => {
                Backing::put_frame(tables, table, place, first.base())
            }
            _ => false,
        }
    }

    /// A page of the memory of tables, zeroed, until everything is [taken
    /// apart](Self::take_apart). `None`: there is none left.
    pub fn own_page(&mut self) -> Option<HostPhysAddr> {
        let page = self.parts.tables.alloc_table().ok()?;
        self.own.push(page);
        Some(page)
    }

    /// Lets the guest see `page`, which is nobody's RAM, at each page of `range`, where there are
    /// devices otherwise. `false`: not everywhere, as there is no frame for a table.
    pub fn fix(&mut self, range: Range<u64>, page: HostPhysAddr, permissions: Permissions) -> bool {
        let all = range.clone();
        self.fixed.push(Fixed { range, page, permissions });
        self.show_fixed(&all)
    }

    /// Gives the page that is [fixed](Self::fix) at `gpa` these rights. Cached translations are
    /// the caller's to forget.
    pub fn protect_fixed(&mut self, gpa: u64, permissions: Permissions) {
        let Some(fixed) = self.fixed.iter_mut().find(|f| f.range.contains(&gpa)) else { return };
        fixed.permissions = permissions;
        let Parts { tables, nested, .. } = &mut self.parts;
        nested.protect(tables, gpa, permissions);
    }

    /// The page that is [fixed](Self::fix) at `gpa`.
    pub fn fixed(&self, gpa: u64) -> Option<HostPhysAddr> {
        self.fixed.iter().find(|f| f.range.contains(&gpa)).map(|f| f.page)
    }

    /// Whether there is a fixed page in `range`.
    pub(super) fn has_fixed(&self, range: Range<u64>) -> bool {
        let meets = |there: &Range<u64>| there.start < range.end && range.start < there.end;
        self.fixed.iter().any(|fixed| meets(&fixed.range))
    }

    /// Shows those fixed pages that lie in `range`.
    pub(super) fn show_fixed(&mut self, range: &Range<u64>) -> bool {
        let Parts { tables, nested, .. } = &mut self.parts;
        let mut all = true;
        for Fixed { range: there, page, permissions } in &self.fixed {
            let attributes = Attributes::ram(*permissions);
            let part = there.start.max(range.start)..there.end.min(range.end);
            for at in part.step_by(4096) {
                let placed = nested.place(tables, at, *page, PageSize::Size4K, attributes);
                all &= matches!(placed, Ok(()) | Err(MapErrorKind::AlreadyMapped));
            }
        }
        all
    }

    /// Takes everything apart, when nobody uses the memory any more: gives each block of frames to
    /// `free`, with its order, and frees all tables.
    pub fn take_apart(&mut self, mut free: impl FnMut(Hfn, u8)) {
        while let Some(block) = self.parts.holdings.pop() {
            free(block, order(PageSize::Size2M));
        }
        while let Some(thing) = self.limbo.take(|_| true) {
            self.let_go(thing, &mut free);
        }
        let mut place = 0;
        while place < self.parts.backing.bytes() {
            if let Some(thing) = self.parts.backing.take(place).into() {
                self.let_go(thing, &mut free);
            }
            place = place.saturating_add(BLOCK);
        }
        let Parts { tables, window, nested, .. } = &mut self.parts;
        window.free_tables(tables);
        nested.free(tables);
        for page in self.own.drain(..) {
            tables.free_table(page);
        }
    }
}

/// Does the work of [`touch`](super::touch) in nested tables of this format.
#[inline(always)]
fn touch_in<T: TableMemory, F: Format>(
    nested: &mut Mapper<F>,
    (tables, backing, holdings): (&mut T, &mut Backing, &mut Holdings),
    gpa: GuestPhysAddr,
    region: &Region,
) -> bool {
    let gpa = gpa.align_down(BLOCK).as_u64();
    let Some(block) = holdings.ready() else { return false };
    let Some(vacancy) = nested.vacancy(tables, gpa, PageSize::Size2M) else { return false };
    if !backing.put_block(region.place(gpa), block.base()) {
        return false;
    }
    nested.fill(tables, vacancy, block.base(), Tree::Nested.attributes(Rights::Ram));
    holdings.ready_shown();
    true
}
