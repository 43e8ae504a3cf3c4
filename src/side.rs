//! The two sides of a preference pair.

use serde::{Deserialize, Serialize};

/// Which response of a preference pair an embedding belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The preferred response, e+.
    Chosen = 0,
    /// The other response, e-.
    Rejected = 1,
}

impl Side {
    /// Both sides, chosen first.
    pub const BOTH: [Side; 2] = [Side::Chosen, Side::Rejected];

    /// The tensor name of this side in a shard.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Chosen => "chosen",
            Side::Rejected => "rejected",
        }
    }
}
