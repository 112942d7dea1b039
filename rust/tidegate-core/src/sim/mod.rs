//! Servers, delays and clients in virtual time, to try the engine against.
//!
//! Nothing here is used in production. A [`Server`] counts strictly and says what it thinks of every message; a [`Trial`] drives a
//! real [`Engine`](crate::engine::Engine) against one as hard as it lets itself be driven, over a line with some [`Delay`].

pub mod balance;
mod case;
mod delay;
mod dice;
mod server;
mod trial;

pub use case::{Case, DELAYS, Outcome, Serving, Shape};
pub use delay::Delay;
pub use dice::Dice;
pub use server::{Rule, Server, Verdict};
pub use trial::{Report, Trial};
