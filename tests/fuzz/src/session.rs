//! A whole session on the control line: files come in pieces, guests are named and defined,
//! lines are said again. Whatever is said, the books agree with what was stored, no file is
//! called whole that is not, and a line that is said again is answered by the same words.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate alloc;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use config::{GuestFault, GuestSettings};
use control::protocol::{Input, Reply, Session, Storage, Uploads};
use control::{Answer, ErrorCode, GuestRef, Known, Operation, Refusal};

/// Bytes that all files may have.
const LIMIT: u64 = 1 << 16;
/// Guests that there may be.
const GUESTS: usize = 8;

/// Files in memory.
#[derive(Default)]
struct Files {
    bytes: u64,
    open: usize,
}

impl Storage for Files {
    type File = Vec<u8>;

    fn allocate(&mut self, size: u64) -> Result<Vec<u8>, Refusal> {
        assert!(size <= LIMIT - self.bytes, "more than all files may have");
        self.bytes += size;
        self.open += 1;
        Ok(vec![0; size as usize])
    }

    fn write(&mut self, file: &mut Vec<u8>, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn release(&mut self, file: Vec<u8>) {
        self.bytes -= file.len() as u64;
        self.open -= 1;
    }
}

/// The machine as far as the session sees it.
struct Machine {
    uploads: Uploads<Files>,
    /// Files and their checksums, as they were promised.
    promised: BTreeMap<String, u32>,
    guests: BTreeMap<u32, GuestSettings>,
    next: u32,
}

impl Machine {
    fn find(&self, guest: &GuestRef) -> Result<u32, Refusal> {
        let known: Vec<Known<'_>> = self
            .guests
            .iter()
            .map(|(number, settings)| Known { number: *number, name: &settings.name })
            .collect();
        guest.resolve(&known)
    }

    fn perform(&mut self, operation: &Operation) -> Result<Answer, Refusal> {
        match operation {
            Operation::UploadBegin { name, size, crc32 } => {
                let state = self.uploads.begin(name, *size, *crc32)?;
                self.promised.insert(name.clone(), *crc32);
                Ok(Answer::Upload(state))
            }
            Operation::UploadChunk { name, offset, data, crc32 } => {
                let state = self.uploads.chunk(name, *offset, data, *crc32)?;
                assert!(state.received <= state.size);
                Ok(Answer::Upload(state))
            }
            Operation::UploadEnd { name } => {
                let state = self.uploads.end(name)?;
                assert!(state.complete && state.received == state.size);
                let file = self.uploads.complete(name)?;
                assert_eq!(crc32(file), self.promised[name], "a damaged file is whole");
                Ok(Answer::Upload(state))
            }
            Operation::UploadDelete { name } => {
                self.uploads.delete(name)?;
                let mut used = self.guests.values().flat_map(files);
                assert!(!used.any(|file| file == name), "a guest's file is gone");
                Ok(Answer::Done)
            }
            Operation::Define(settings) => {
                let whole: BTreeSet<&str> = self.uploads.names().collect();
                let bad =
                    |fault: GuestFault| Refusal::new(ErrorCode::BadArgument, fault.to_string());
                settings.check(&whole).map_err(bad)?;
                if self.guests.len() >= GUESTS {
                    return Err(Refusal::new(ErrorCode::TooMany, "enough"));
                }
                self.uploads.hold(files(settings))?;
                self.guests.insert(self.next, (**settings).clone());
                self.next += 1;
                Ok(Answer::Done)
            }
            Operation::Delete(guest) => {
                let number = self.find(guest)?;
                if let Some(settings) = self.guests.remove(&number) {
                    self.uploads.let_go(files(&settings));
                }
                Ok(Answer::Done)
            }
            Operation::Attach(guest) | Operation::Kill(guest) | Operation::Why(guest) => {
                self.find(guest).map(|_| Answer::Done)
            }
            _ => Ok(Answer::Done),
        }
    }
}

/// The files that a guest is made of.
fn files(settings: &GuestSettings) -> impl Iterator<Item = &str> + Clone {
    let modules = settings.modules.iter().map(|module| module.file.as_str());
    [settings.kernel.as_str()].into_iter().chain(settings.initrd.as_deref()).chain(modules)
}

/// CRC-32, bit by bit: another way than the one under test.
fn crc32(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| crc >> 1 ^ (crc & 1).wrapping_neg() & 0xedb8_8320;
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

/// One case: what comes over the line. A line that ends with a tabulator is said twice.
pub fn run(data: &[u8]) {
    let mut session = Session::new();
    let uploads = Uploads::new(Files::default(), LIMIT);
    let mut machine =
        Machine { uploads, promised: BTreeMap::new(), guests: BTreeMap::new(), next: 1 };
    for line in data.split(|byte| *byte == b'\n') {
        let first = say(&mut session, &mut machine, line);
        if line.last() == Some(&b'\t')
            && let Some((answer, remembered)) = first
        {
            let again = say(&mut session, &mut machine, line).map(|(answer, _)| answer);
            assert!(!remembered || again == Some(answer), "the same line, another answer");
        }
    }
    // Everything can be given back.
    let names: Vec<String> = machine.promised.keys().cloned().collect();
    for settings in machine.guests.values() {
        machine.uploads.let_go(files(settings));
    }
    for name in names {
        let _ = machine.uploads.delete(&name);
    }
    assert_eq!(machine.uploads.names().count(), 0);
}

/// Says a line: its answer, and whether it is one that is remembered.
fn say(session: &mut Session, machine: &mut Machine, line: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (used, input) = session.feed(line);
    assert!(used == line.len() && input.is_none());
    let (answer, remembered) = match session.feed(b"\n").1? {
        Input::Answer(answer) => (answer, false),
        Input::Request(request) => {
            let changes = matches!(
                request.operation,
                Operation::UploadBegin { .. }
                    | Operation::UploadEnd { .. }
                    | Operation::UploadDelete { .. }
                    | Operation::Define(_)
                    | Operation::Delete(_)
            );
            let outcome = machine.perform(&request.operation);
            (session.finish(&request, outcome), changes)
        }
    };
    Reply::from_line(&answer).expect("the other end can read it");
    Some((answer, remembered))
}
