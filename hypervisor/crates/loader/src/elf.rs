//! ELF images of both classes (ELF: "ELF Header", "Program Header").
//!
//! The crate `elf` reads the headers. It is used piece by piece, not by its one call for a whole
//! file: that one reads section headers too, which no kernel here needs, and its errors name no
//! field. The checks are here, where a refusal names the field and the values that it may have.
//! Notes are walked here, too: the crate's iterator ends at the first note of GNU's that it knows
//! and finds damaged, though the one that is looked for may stand behind it.

use crate::bytes::Bytes;
use crate::error::{Format, LoadError, SegmentFault};
use crate::place::Plan;
use alloc::vec::Vec;
use core::mem::{offset_of, size_of};
use core::ops::Range;
use elf::abi::{
    EI_CLASS, EI_DATA, EI_NIDENT, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, ELFMAGIC, EM_386, EM_X86_64,
    ET_DYN, ET_EXEC, PT_LOAD, PT_NOTE,
};
use elf::endian::LittleEndian;
use elf::file::{Class, Elf32_Ehdr, Elf64_Ehdr, FileHeader};
use elf::parse::ParseAt;
use elf::segment::ProgramHeader;

const CLASS: u64 = EI_CLASS as u64;
const DATA: u64 = EI_DATA as u64;
const TYPE: u64 = offset_of!(Elf64_Ehdr, e_type) as u64;
const MACHINE: u64 = offset_of!(Elf64_Ehdr, e_machine) as u64;
/// More program headers than any kernel has; bounds the work.
const MAX_HEADERS: u16 = 256;
/// More bytes of notes than any kernel has, in all segments together; bounds the work.
const MAX_NOTES: u64 = 0x1_0000;

/// Whether the image begins as an ELF image does.
pub(crate) fn is_elf(image: Bytes<'_>) -> bool {
    image.0.starts_with(&ELFMAGIC)
}

/// An ELF image with its program headers.
pub(crate) struct Elf<'a> {
    image: Bytes<'a>,
    header: FileHeader<LittleEndian>,
    headers: Vec<ProgramHeader>,
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
        let short_header = |end: u64| short("the ELF header", end);

        let class = match image.u8(CLASS).ok_or(short_header(CLASS + 1))? {
            ELFCLASS32 => Class::ELF32,
            ELFCLASS64 => Class::ELF64,
            other => return field("EI_CLASS", CLASS, other.into(), "it must be 1 or 2"),
        };
        let data = image.u8(DATA).ok_or(short_header(DATA + 1))?;
        if data != ELFDATA2LSB {
            return field("EI_DATA", DATA, data.into(), "it must be 1 (little-endian)");
        }
        let (size_at, count_at, end) = match class {
            Class::ELF32 => (
                offset_of!(Elf32_Ehdr, e_phentsize),
                offset_of!(Elf32_Ehdr, e_phnum),
                size_of::<Elf32_Ehdr>(),
            ),
            Class::ELF64 => (
                offset_of!(Elf64_Ehdr, e_phentsize),
                offset_of!(Elf64_Ehdr, e_phnum),
                size_of::<Elf64_Ehdr>(),
            ),
        };
        // The identification's other bytes do not matter here.
        let rest = image.0.get(EI_NIDENT..).unwrap_or_default();
        let header = FileHeader::parse_tail((LittleEndian, class, 0, 0), rest)
            .map_err(|_| short_header(end as u64))?;
        if !matches!(header.e_type, ET_EXEC | ET_DYN) {
            let wanted = "it must be 2 (executable) or 3 (shared object)";
            return unsupported("e_type", TYPE, header.e_type.into(), wanted);
        }
        if !matches!(header.e_machine, EM_386 | EM_X86_64) {
            let wanted = "it must be 3 (80386) or 62 (x86-64)";
            return unsupported("e_machine", MACHINE, header.e_machine.into(), wanted);
        }
        if usize::from(header.e_phentsize) != ProgramHeader::size_for(class) {
            let wanted = "it must be 32 (ELF32) or 56 (ELF64)";
            return field("e_phentsize", size_at as u64, header.e_phentsize.into(), wanted);
        }
        let count = header.e_phnum;
        if count == 0 || count > MAX_HEADERS {
            return field("e_phnum", count_at as u64, count.into(), "it must be 1 to 256");
        }
        let headers = (0..count.into())
            .map(|index| {
                let (at, size) = (place(&header, index), header.e_phentsize.into());
                let bytes = image.get(at, size);
                bytes
                    .and_then(|it| ProgramHeader::parse_at(LittleEndian, class, &mut 0, it).ok())
                    .ok_or(short("a program header", at.saturating_add(size)))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { image, header, headers })
    }

    /// The first four bytes of each loadable segment that has as many.
    pub(crate) fn segments_begin(&self) -> impl Iterator<Item = &'a [u8]> {
        let loaded = self.headers.iter().filter(|h| h.p_type == PT_LOAD && h.p_filesz >= 4);
        loaded.filter_map(|header| self.image.get(header.p_offset, 4))
    }

    /// From the lowest to the highest physical address of the loadable segments.
    pub(crate) fn range(&self) -> Range<u64> {
        let end = |header: &ProgramHeader| header.p_paddr.saturating_add(header.p_memsz);
        let start = self.loaded().map(|(_, header)| header.p_paddr).min().unwrap_or_default();
        start..self.loaded().map(|(_, header)| end(header)).max().unwrap_or_default()
    }

    /// The headers of segments that take memory, with their place among all.
    fn loaded(&self) -> impl Iterator<Item = (usize, &ProgramHeader)> {
        self.headers.iter().enumerate().filter(|(_, h)| h.p_type == PT_LOAD && h.p_memsz != 0)
    }

    /// Checks the loadable segments, takes their memory and has them written.
    pub(crate) fn place_segments(
        &self,
        plan: &mut Plan<'a>,
        memory: u64,
    ) -> Result<Loaded, LoadError> {
        let mut segments = Vec::new();
        let mut entry = self.header.e_entry;
        for (index, header) in self.loaded() {
            let fault = |fault| LoadError::Segment {
                index,
                start: header.p_paddr,
                end: header.p_paddr.saturating_add(header.p_memsz),
                fault,
                memory,
            };
            if header.p_filesz > header.p_memsz {
                return Err(fault(SegmentFault::FileLarger));
            }
            // A segment without contents may say any offset.
            let offset = if header.p_filesz == 0 { 0 } else { header.p_offset };
            let contents =
                self.image.get(offset, header.p_filesz).ok_or(fault(SegmentFault::Truncated))?;
            let end =
                header.p_paddr.checked_add(header.p_memsz).ok_or(fault(SegmentFault::Overflow))?;
            let range = header.p_paddr..end;
            if !plan.is_ram(&range) {
                return Err(fault(SegmentFault::NotRam));
            }
            if !plan.is_free(&range) {
                return Err(fault(SegmentFault::Overlap));
            }
            plan.take(range.clone());
            plan.put(range.start, contents);
            plan.zero(range.start + header.p_filesz..end);
            // The entry point is a virtual address.
            if let Some(offset) = self.header.e_entry.checked_sub(header.p_vaddr)
                && offset < header.p_memsz
            {
                entry = header.p_paddr + offset;
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
        let of_notes = self.headers.iter().enumerate().filter(|(_, h)| h.p_type == PT_NOTE);
        for (index, header) in of_notes {
            total = total.saturating_add(header.p_filesz);
            if total > MAX_NOTES {
                return Err(LoadError::Field {
                    format: Format::Elf,
                    field: "p_filesz of PT_NOTE",
                    offset: place(&self.header, index),
                    value: header.p_filesz,
                    wanted: "notes must not take more than 64 KiB together",
                });
            }
            let notes = self.image.get(header.p_offset, header.p_filesz).map(Bytes).ok_or(
                LoadError::Truncated {
                    what: "a segment of notes",
                    wanted: header.p_offset.saturating_add(header.p_filesz),
                    got: self.image.len(),
                },
            )?;
            if let Some((at, descriptor)) = find_note(notes, header.p_align, name, kind) {
                return Ok(Some((header.p_offset + at, descriptor)));
            }
        }
        Ok(None)
    }
}

/// Offset in the image of the program header with this index.
fn place(header: &FileHeader<LittleEndian>, index: usize) -> u64 {
    let before = (index as u64).saturating_mul(header.e_phentsize.into());
    header.e_phoff.saturating_add(before)
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
