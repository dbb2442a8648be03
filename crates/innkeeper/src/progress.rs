//! What a long operation tells while it goes on.

/// Told what a long operation is doing; the command line draws it, a program may count it.
pub trait Progress: Send + Sync {
    /// Takes one step of news. Called often: it must return at once.
    fn report(&self, update: Update<'_>);
}

/// One step of news.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update<'a> {
    /// What is going on, such as `downloading image` or `starting`: stable within one step.
    pub step: &'a str,
    /// Detail for people, such as the package being unpacked.
    pub detail: &'a str,
    /// How much is done, in `unit`s.
    pub done: u64,
    /// How much there is in all, if that is known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Unit,
}

/// What progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Pieces of work.
    Steps,
    /// Nothing that can be counted.
    None,
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _: Update<'_>) {}
}
