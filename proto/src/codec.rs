//! How messages become bytes: as tonic does it, with less room set aside.

use std::marker::PhantomData;

use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Bytes that a stream sets aside for what it reads: a batch of an agent. With less it would grow by doubling, past them.
const READ_BYTES: usize = 8 * 1024;
/// Bytes that a stream sets aside for what it writes: an acknowledgement. It grows with the messages.
const WRITE_BYTES: usize = 1024;
/// Bytes of messages that are collected before they are sent: the other side keeps the room that they take together. tonic's
/// 32 KiB would fill whole frames of HTTP/2 whenever several batches wait.
const YIELD_BYTES: usize = 1024;
/// Most bytes that are set aside for a message because the one before took as many: the rows of a long answer.
const ALIKE_BYTES: usize = 256 * 1024;

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
    type Encoder = FrugalEncoder<T>;
    type Decoder = FrugalDecoder<U>;

    fn encoder(&mut self) -> FrugalEncoder<T> {
        FrugalEncoder { before: 0, message: PhantomData }
    }

    fn decoder(&mut self) -> FrugalDecoder<U> {
        FrugalDecoder(PhantomData)
    }
}

/// Writes messages of a stream.
#[derive(Debug)]
pub struct FrugalEncoder<T> {
    /// Bytes of the message before. Those of a long answer are as long as each other, and room that grows by doubling is copied
    /// each time.
    before: usize,
    message: PhantomData<T>,
}

impl<T: Message> Encoder for FrugalEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(self.before.min(ALIKE_BYTES));
        let room = buf.remaining_mut();
        message.encode(buf).map_err(|error| Status::internal(error.to_string()))?;
        self.before = room - buf.remaining_mut();
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(WRITE_BYTES, YIELD_BYTES)
    }
}

/// Reads messages of a stream.
#[derive(Debug)]
pub struct FrugalDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for FrugalDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // What is in one piece is quicker to read than a buffer that could be in several, and has parts that need not be copied.
        let whole = buf.copy_to_bytes(buf.remaining());
        U::decode(whole).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(READ_BYTES, YIELD_BYTES)
    }
}
