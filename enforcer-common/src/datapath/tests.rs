//! Every rule of the datapath, one test each, over tables in memory.

mod conversation;
mod model;

mod bypass;
mod handshake;
mod judging;
mod lifetime;
mod policy;

use self::conversation::{CLIENT_ISN, Conversation, HELLO, POD_ISN, SERVER_HELLO};
use self::model::Model;
