//! The window of linear memory that programs work in, page by page, and where
//! the harness has it backed.

/// First byte of the window. All of it has addresses below 2 GiB, so that one
/// encoding serves every mode.
pub const WINDOW: u64 = 0x4000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Content of a page of the window. Pages are numbered from the window's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Not present.
    Absent,
    /// RAM for code.
    Code,
    /// RAM.
    Data,
    /// RAM, read-only.
    ReadOnly,
    /// RAM, not to be executed.
    NoExecute,
    /// RAM for ring 0 only.
    Supervisor,
    /// RAM, with a reserved bit set in its entry.
    Reserved,
    /// RAM for stacks.
    Stack,
    /// RAM that nobody has touched before.
    Fresh,
    /// The firmware's ROM: writes are lost.
    Rom,
    /// The local APIC.
    Lapic,
    /// The I/O APIC.
    IoApic,
    /// Device memory that behaves like RAM.
    Scratch,
    /// Device memory that nobody answers at.
    Hole,
}

/// The pages.
pub const PAGES: [Page; 22] = [
    Page::Absent,
    Page::Code,
    Page::Code,
    Page::Absent,
    Page::Data,
    Page::Data,
    Page::Absent,
    Page::ReadOnly,
    Page::NoExecute,
    Page::Supervisor,
    Page::Reserved,
    Page::Lapic,
    Page::IoApic,
    Page::Scratch,
    Page::Hole,
    Page::Absent,
    Page::Stack,
    Page::Stack,
    Page::Absent,
    Page::Fresh,
    Page::Rom,
    Page::Absent,
];

/// Linear address of the first page of a kind.
#[must_use]
pub fn address(page: Page) -> u64 {
    let index = PAGES.iter().position(|p| *p == page).unwrap_or(0);
    WINDOW + index as u64 * PAGE
}

/// Interrupt vectors that programs send to themselves.
pub const IPI_VECTORS: [u8; 4] = [0x51, 0x52, 0x61, 0xe1];
/// The software interrupt that ends a program; ring 3 may use it.
pub const END_VECTOR: u8 = 0x81;
/// A software interrupt that ring 3 may use and that only gets noted.
pub const NOTE_VECTOR: u8 = 0x80;

/// Selectors that the harness offers, in its descriptor table.
pub mod selector {
    /// Data of ring 0.
    pub const DATA: u16 = 0x10;
    /// Data of ring 3.
    pub const USER_DATA: u16 = 0x23;
    /// 64-bit code of ring 0.
    pub const CODE64: u16 = 0x08;
    /// An empty descriptor within the table.
    pub const EMPTY: u16 = 0x60;
    /// Data, not present.
    pub const NOT_PRESENT: u16 = 0x68;
    /// Beyond the table.
    pub const BEYOND: u16 = 0x200;
    /// The task state segment, which is busy.
    pub const TSS: u16 = 0x30;
}
