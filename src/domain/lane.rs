//! Who waits for an input: a person, or an indexing run.

/// Which queue an input waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// A request with a single item: somebody waits for a result list.
    Search,
    /// Everything else.
    Bulk,
}

impl Lane {
    /// Both, in the order of the metrics' label values.
    pub const ALL: [Self; 2] = [Self::Search, Self::Bulk];

    /// The name used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Bulk => "bulk",
        }
    }
}

/// The lanes that an engine works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// Both, searches first.
    All,
    /// One of them; another engine works for the other.
    Only(Lane),
}

impl Lanes {
    /// Whether `lane` is one of them.
    pub fn serve(self, lane: Lane) -> bool {
        match self {
            Self::All => true,
            Self::Only(only) => only == lane,
        }
    }
}
