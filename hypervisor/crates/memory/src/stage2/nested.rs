//! A guest's nested tables, in the format of the machine's vendor.

use super::{
    Attributes, Detached, Ept, MapErrorKind, Mapper, Npt, PageSize, Permissions, TableMemory,
};
use x86defs::HostPhysAddr;
use x86defs::addr::PAGE_SIZE;

/// Which format of nested tables to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFormat {
    /// AMD-V's.
    Npt,
    /// VT-x's.
    Ept,
}

/// A guest's nested tables.
#[derive(Debug)]
pub enum NestedTables {
    /// AMD-V's.
    Npt(Mapper<Npt>),
    /// VT-x's.
    Ept(Mapper<Ept>),
}

/// Does `$work` with the tables, as `$mapper`, whatever their format.
macro_rules! either {
    ($tables:expr, $mapper:ident => $work:expr) => {
        match $tables {
            NestedTables::Npt($mapper) => $work,
            NestedTables::Ept($mapper) => $work,
        }
    };
}

impl NestedTables {
    /// Empty tables.
    ///
    /// # Errors
    /// There is no table for the root.
    pub fn new<M: TableMemory>(mem: &mut M, format: NestedFormat) -> Result<Self, M::Error> {
        Ok(match format {
            NestedFormat::Npt => Self::Npt(Mapper::new(mem, PageSize::Size2M)?),
            NestedFormat::Ept => Self::Ept(Mapper::new(mem, PageSize::Size2M)?),
        })
    }

    /// The root table.
    #[must_use]
    pub const fn root(&self) -> HostPhysAddr {
        either!(self, m => m.root())
    }

    /// [`Mapper::detach`].
    pub(crate) fn detach<M: TableMemory>(&mut self, mem: &mut M, gpa: u64) -> Detached {
        either!(self, m => m.detach(mem, gpa))
    }

    /// [`Mapper::attached`].
    pub(crate) fn attached<M: TableMemory>(&self, mem: &M, gpa: u64) -> Detached {
        either!(self, m => m.attached(mem, gpa))
    }

    /// Maps a page at `gpa`, where nothing is.
    ///
    /// # Errors
    /// Those of [`Mapper::make_vacancy`].
    pub(crate) fn place<M: TableMemory>(
        &mut self,
        mem: &mut M,
        gpa: u64,
        hpa: HostPhysAddr,
        size: PageSize,
        attributes: Attributes,
    ) -> Result<(), MapErrorKind<M::Error>> {
        either!(self, m => m.place(mem, gpa, hpa, size, attributes))
    }

    /// Gives the small page at `gpa`, if there is one, these rights.
    pub(crate) fn protect<M: TableMemory>(
        &mut self,
        mem: &mut M,
        gpa: u64,
        permissions: Permissions,
    ) {
        let attributes = Attributes::ram(permissions);
        // A page of 4 KiB is never split: it can't fail.
        let _ = either!(self, m => m.protect(mem, gpa, PAGE_SIZE, attributes).is_ok());
    }

    /// The page at `gpa`.
    #[must_use]
    pub fn query<M: TableMemory>(&self, mem: &M, gpa: u64) -> Option<super::Mapping> {
        either!(self, m => m.query(mem, gpa))
    }

    /// Frees all tables. The pages are somebody else's.
    pub(crate) fn free<M: TableMemory>(&self, mem: &mut M) {
        either!(self, m => m.free_tables(mem));
    }
}
