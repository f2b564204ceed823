//! ELF images of both classes (ELF: "ELF Header", "Program Header").

use crate::bytes::Bytes;
use crate::error::{Format, LoadError, SegmentFault};
use crate::place::Plan;
use alloc::vec::Vec;
use core::ops::Range;

const MAGIC: &[u8] = b"\x7fELF";
const CLASS: u64 = 4;
const DATA: u64 = 5;
const TYPE: u64 = 16;
const MACHINE: u64 = 18;
const ENTRY: u64 = 24;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const SHARED: u16 = 3;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// More program headers than any kernel has; bounds the work.
const MAX_HEADERS: u16 = 256;
/// More bytes of notes than any kernel has, in all segments together; bounds the work.
const MAX_NOTES: u64 = 0x1_0000;

/// Whether the image begins as an ELF image does.
pub(crate) fn is_elf(image: Bytes<'_>) -> bool {
    image.get(0, 4) == Some(MAGIC)
}

/// Whether addresses have 32 or 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Elf32,
    Elf64,
}

/// A program header.
struct Header {
    index: usize,
    /// Offset of the header in the image.
    at: u64,
    kind: u32,
    offset: u64,
    virtual_start: u64,
    start: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// An ELF image with its program headers.
pub(crate) struct Elf<'a> {
    image: Bytes<'a>,
    entry: u64,
    headers: Vec<Header>,
}

/// The result of loading.
pub(crate) struct Loaded {
    /// Physical address of the entry point in the ELF header.
    pub(crate) entry: u64,
    /// Physical addresses of the segments.
    pub(crate) segments: Vec<Range<u64>>,
}

impl Loaded {
    /// The address of the first segment.
    pub(crate) fn start(&self) -> u64 {
        self.segments.iter().map(|range| range.start).min().unwrap_or_default()
    }

    /// The address after the last segment.
    pub(crate) fn end(&self) -> u64 {
        self.segments.iter().map(|range| range.end).max().unwrap_or_default()
    }

    /// Checks that a segment holds the entry point.
    pub(crate) fn check_entry(&self, entry: u64) -> Result<(), LoadError> {
        if self.segments.iter().any(|range| range.contains(&entry)) {
            Ok(())
        } else {
            Err(LoadError::Entry { entry })
        }
    }
}

impl<'a> Elf<'a> {
    /// Reads the headers.
    pub(crate) fn parse(image: Bytes<'a>) -> Result<Self, LoadError> {
        let field = |field, offset, value, wanted| {
            Err(LoadError::Field { format: Format::Elf, field, offset, value, wanted })
        };
        let unsupported = |field, offset, value, wanted| {
            Err(LoadError::Unsupported { format: Format::Elf, field, offset, value, wanted })
        };
        let short = |what, wanted| LoadError::Truncated { what, wanted, got: image.len() };
        let header = |at: u64| short("the ELF header", at);

        let class = match image.u8(CLASS).ok_or(header(CLASS + 1))? {
            1 => Class::Elf32,
            2 => Class::Elf64,
            other => return field("EI_CLASS", CLASS, other.into(), "it must be 1 or 2"),
        };
        let data = image.u8(DATA).ok_or(header(DATA + 1))?;
        if data != LITTLE_ENDIAN {
            return field("EI_DATA", DATA, data.into(), "it must be 1 (little-endian)");
        }
        let kind = image.u16(TYPE).ok_or(header(TYPE + 2))?;
        if kind != EXECUTABLE && kind != SHARED {
            let wanted = "it must be 2 (executable) or 3 (shared object)";
            return unsupported("e_type", TYPE, kind.into(), wanted);
        }
        let machine = image.u16(MACHINE).ok_or(header(MACHINE + 2))?;
        if machine != MACHINE_386 && machine != MACHINE_X86_64 {
            let wanted = "it must be 3 (80386) or 62 (x86-64)";
            return unsupported("e_machine", MACHINE, machine.into(), wanted);
        }
        let word = |at| match class {
            Class::Elf32 => image.u32(at).map(u64::from).ok_or(header(at + 4)),
            Class::Elf64 => image.u64(at).ok_or(header(at + 8)),
        };
        let (table_at, size_at, count_at, size) = match class {
            Class::Elf32 => (28, 42, 44, 32u16),
            Class::Elf64 => (32, 54, 56, 56u16),
        };
        let entry = word(ENTRY)?;
        let table = word(table_at)?;
        let got = image.u16(size_at).ok_or(header(size_at + 2))?;
        if got != size {
            let wanted = "it must be 32 (ELF32) or 56 (ELF64)";
            return field("e_phentsize", size_at, got.into(), wanted);
        }
        let count = image.u16(count_at).ok_or(header(count_at + 2))?;
        if count == 0 || count > MAX_HEADERS {
            return field("e_phnum", count_at, count.into(), "it must be 1 to 256");
        }
        let headers = (0..count)
            .map(|index| {
                let at = table.saturating_add(u64::from(index) * u64::from(size));
                Header::read(image, class, at, index.into())
                    .ok_or(short("a program header", at.saturating_add(size.into())))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { image, entry, headers })
    }

    /// The first four bytes of each loadable segment that has as many.
    pub(crate) fn segments_begin(&self) -> impl Iterator<Item = &'a [u8]> {
        let loaded = self.headers.iter().filter(|h| h.kind == PT_LOAD && h.file_size >= 4);
        loaded.filter_map(|header| self.image.get(header.offset, 4))
    }

    /// From the lowest to the highest physical address of the loadable segments.
    pub(crate) fn range(&self) -> Range<u64> {
        let loaded = || self.headers.iter().filter(|h| h.kind == PT_LOAD && h.memory_size != 0);
        let end = |header: &Header| header.start.saturating_add(header.memory_size);
        let start = loaded().map(|header| header.start).min().unwrap_or_default();
        start..loaded().map(end).max().unwrap_or_default()
    }

    /// Checks the loadable segments, takes their memory and has them written.
    pub(crate) fn place_segments(
        &self,
        plan: &mut Plan<'a>,
        memory: u64,
    ) -> Result<Loaded, LoadError> {
        let mut segments = Vec::new();
        let mut entry = self.entry;
        for header in self.headers.iter().filter(|h| h.kind == PT_LOAD && h.memory_size != 0) {
            let fault = |fault| LoadError::Segment {
                index: header.index,
                start: header.start,
                end: header.start.saturating_add(header.memory_size),
                fault,
                memory,
            };
            if header.file_size > header.memory_size {
                return Err(fault(SegmentFault::FileLarger));
            }
            // A segment without contents may say any offset.
            let offset = if header.file_size == 0 { 0 } else { header.offset };
            let contents =
                self.image.get(offset, header.file_size).ok_or(fault(SegmentFault::Truncated))?;
            let end = header
                .start
                .checked_add(header.memory_size)
                .ok_or(fault(SegmentFault::Overflow))?;
            let range = header.start..end;
            if !plan.is_ram(&range) {
                return Err(fault(SegmentFault::NotRam));
            }
            if !plan.is_free(&range) {
                return Err(fault(SegmentFault::Overlap));
            }
            plan.take(range.clone());
            plan.put(range.start, contents);
            plan.zero(range.start + header.file_size..end);
            // The entry point is a virtual address.
            if let Some(offset) = self.entry.checked_sub(header.virtual_start)
                && offset < header.memory_size
            {
                entry = header.start + offset;
            }
            segments.push(range);
        }
        Ok(Loaded { entry, segments })
    }

    /// The first note with this name and type: where its descriptor stands in
    /// the image, and the descriptor.
    pub(crate) fn note(
        &self,
        name: &[u8],
        kind: u32,
    ) -> Result<Option<(u64, Bytes<'a>)>, LoadError> {
        let mut total = 0u64;
        for header in self.headers.iter().filter(|header| header.kind == PT_NOTE) {
            total = total.saturating_add(header.file_size);
            if total > MAX_NOTES {
                return Err(LoadError::Field {
                    format: Format::Elf,
                    field: "p_filesz of PT_NOTE",
                    offset: header.at,
                    value: header.file_size,
                    wanted: "notes must not take more than 64 KiB together",
                });
            }
            let notes = self.image.get(header.offset, header.file_size).map(Bytes).ok_or(
                LoadError::Truncated {
                    what: "a segment of notes",
                    wanted: header.offset.saturating_add(header.file_size),
                    got: self.image.len(),
                },
            )?;
            if let Some((at, descriptor)) = find_note(notes, header.align, name, kind) {
                return Ok(Some((header.offset + at, descriptor)));
            }
        }
        Ok(None)
    }
}

impl Header {
    fn read(image: Bytes<'_>, class: Class, at: u64, index: usize) -> Option<Self> {
        // The whole header first, so that no offset below can overflow.
        let header = Bytes(image.get(at, if class == Class::Elf32 { 32 } else { 56 })?);
        let half = |offset| header.u32(offset).map(u64::from);
        let word = |offset| header.u64(offset);
        Some(match class {
            Class::Elf32 => Self {
                index,
                at,
                kind: header.u32(0)?,
                offset: half(4)?,
                virtual_start: half(8)?,
                start: half(12)?,
                file_size: half(16)?,
                memory_size: half(20)?,
                align: half(28)?,
            },
            Class::Elf64 => Self {
                index,
                at,
                kind: header.u32(0)?,
                offset: word(8)?,
                virtual_start: word(16)?,
                start: word(24)?,
                file_size: word(32)?,
                memory_size: word(40)?,
                align: word(48)?,
            },
        })
    }
}

/// Walks a segment of notes (ELF: "Note Section"): three words, then the name
/// and the descriptor, each padded.
fn find_note<'a>(notes: Bytes<'a>, align: u64, name: &[u8], kind: u32) -> Option<(u64, Bytes<'a>)> {
    let align = if align == 8 { 8 } else { 4 };
    let mut at = 0u64;
    loop {
        let name_size = u64::from(notes.u32(at)?);
        let size = u64::from(notes.u32(at + 4)?);
        let found = notes.u32(at + 8)?;
        let name_at = at + 12;
        let descriptor_at = (name_at + name_size).next_multiple_of(align);
        if found == kind && notes.get(name_at, name_size) == Some(name) {
            return Some((descriptor_at, Bytes(notes.get(descriptor_at, size)?)));
        }
        at = (descriptor_at + size).next_multiple_of(align);
    }
}
