//! How messages become bytes: as tonic does it, with less room set aside.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Bytes that a stream sets aside for what it reads: a batch of an agent. With less it would grow by doubling, past them.
const READ_BYTES: usize = 8 * 1024;
/// Bytes that a stream sets aside for what it writes: an acknowledgement. It grows with the messages.
const WRITE_BYTES: usize = 1024;
/// Bytes of messages that are collected before they are sent: the other side keeps the room that they take together. tonic's
/// 32 KiB would fill whole frames of HTTP/2 whenever several batches wait.
const YIELD_BYTES: usize = 1024;

/// Messages of Protocol Buffers.
#[derive(Debug)]
pub struct FrugalCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for FrugalCodec<T, U> {
    fn default() -> FrugalCodec<T, U> {
        FrugalCodec(PhantomData)
    }
}

impl<T, U> Codec for FrugalCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(WRITE_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(READ_BYTES, YIELD_BYTES))
    }
}
