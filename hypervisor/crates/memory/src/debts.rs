//! Debts of CPUs to a guest's memory.
//!
//! When something of a guest's memory is taken away, or its rights are, CPUs may still have it in
//! their translation caches. A CPU owes it to the guest to forget that, if the guest's address
//! space is loaded there; it pays at its next stop. One that loads the space later begins with
//! nothing cached, and owes nothing. What was taken away is kept in [limbo](crate::limbo) until
//! nobody owes anything for it.

use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};
use alloc::boxed::Box;

/// The word of a CPU that has the space not loaded.
const AWAY: u64 = 0;
/// The generation in which a guest's memory begins; the word of a CPU that has the space loaded and
/// paid for nothing.
const FIRST: u64 = 1;

/// A CPU's word, on a cache line that no other CPU writes to.
#[derive(Debug)]
#[repr(align(64))]
struct Word(AtomicU64);

/// The debts of all CPUs to one guest's memory.
#[derive(Debug)]
pub struct Debts {
    /// How often something was taken away.
    generation: AtomicU64,
    /// Something is in limbo.
    waiting: AtomicBool,
    /// By CPU: the generation up to which it has paid, while the space is loaded there.
    words: Box<[Word]>,
}

impl Debts {
    /// Of `cpus` CPUs, none of which has the space loaded.
    #[must_use]
    pub fn new(cpus: usize) -> Self {
        Self {
            generation: AtomicU64::new(FIRST),
            waiting: AtomicBool::new(false),
            words: (0..cpus).map(|_| Word(AtomicU64::new(AWAY))).collect(),
        }
    }

    /// The generation of the memory: it rises when something is taken away.
    #[inline(always)]
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// CPU `cpu` is about to load the space. Returns what it has [paid](Self::pay) for when it has
    /// done so, with nothing of the space cached.
    pub fn enter(&self, cpu: usize) -> u64 {
        self.set(cpu, FIRST);
        // Either this CPU sees that something was taken away, or who took it sees this CPU's word.
        fence(Ordering::SeqCst);
        self.generation()
    }

    /// CPU `cpu` has nothing cached that was taken away up to `generation`.
    pub fn pay(&self, cpu: usize, generation: u64) {
        self.set(cpu, generation);
        fence(Ordering::SeqCst);
    }

    /// CPU `cpu` has the space not loaded any more.
    pub fn leave(&self, cpu: usize) {
        self.set(cpu, AWAY);
        fence(Ordering::SeqCst);
    }

    /// A word is set when its CPU has done with what it stands for.
    fn set(&self, cpu: usize, value: u64) {
        if let Some(Word(word)) = self.words.get(cpu) {
            word.store(value, Ordering::Release);
        }
    }

    /// Everything that was taken away up to now is owed. One at a time calls this, with the guest's
    /// lock held.
    pub(crate) fn owe(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// The generation in which what is taken away now will be owed; with the guest's lock held.
    pub(crate) fn next_generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed).wrapping_add(1)
    }

    /// The CPUs that owe something.
    pub fn debtors(&self) -> impl Iterator<Item = usize> {
        let generation = self.generation();
        fence(Ordering::SeqCst);
        let owes = move |word: &Word| self.owes(word, generation);
        self.words.iter().enumerate().filter(move |(_, word)| owes(word)).map(|(cpu, _)| cpu)
    }

    fn owes(&self, Word(word): &Word, generation: u64) -> bool {
        let paid = word.load(Ordering::Acquire);
        paid != AWAY && paid < generation
    }

    /// Whether nobody owes anything for what was taken away up to `generation`.
    #[must_use]
    pub fn is_settled(&self, generation: u64) -> bool {
        fence(Ordering::SeqCst);
        cfg!(planted = "debt-forgotten")
            || !self.words.iter().any(|word| self.owes(word, generation))
    }

    /// Notes whether something is in limbo; with the guest's lock held.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Release);
    }

    /// Whether something is in limbo, which a CPU that has just [paid](Self::pay) or
    /// [left](Self::leave) looks after: it may be the last one.
    #[inline(always)]
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }
}
