//! What the kernel does at each descriptor of each process: the program of the iterator, assembled for this kernel.
//!
//! There is no compiler for it and no object file: it is two dozen instructions, and what differs from kernel to kernel is
//! only where fields are, which `btf` tells. In C it would be:
//!
//! ```c
//! int each(struct bpf_iter__task_file *context) {
//!     struct file *file = context->file;
//!     struct task_struct *task = context->task;
//!     if (!file || !task || file->f_inode->i_sb->s_magic != SOCKFS_MAGIC)
//!         return 0;
//!     u64 record[3] = {task->tgid, task->group_leader->start_boottime, file->f_inode->i_ino};
//!     bpf_seq_write(context->meta->seq, record, sizeof(record));
//!     return 0;
//! }
//! ```

use std::ffi::CStr;

use super::btf::{Btf, InvalidBtf, TypeId};
use crate::kernel::{
    bpf::Instruction,
    bytes::{u32_at, u64_at},
};

/// Stands for going through the descriptors of all tasks (kernel/bpf/task_iter.c of the kernel).
const ITERATOR: &str = "bpf_iter_task_file";
/// Bytes of an argument of a program.
const ARGUMENT_BYTES: usize = 8;
/// The magic number of the file system that sockets are in (include/uapi/linux/magic.h). An S_IFSOCK would not do: that is
/// also the name of a UNIX socket in any other file system, which can be opened with O_PATH.
const SOCKFS_MAGIC: i32 = 0x534f_434b;
/// `bpf_seq_write` (include/uapi/linux/bpf.h).
const SEQ_WRITE: i32 = 127;
/// Bytes of what is written for a socket.
pub(super) const RECORD_BYTES: usize = 24;
/// How many bytes of the stack that is, below its end.
const RECORD: i16 = -24;
/// `bpf_seq_write` is only for programs that may be linked with the GPL. This one is under the licenses of the project, MIT or
/// Apache-2.0, and what is under the MIT license may be passed on under the GPL: this is the kernel's word for that
/// (include/linux/license.h).
pub(super) const LICENSE: &CStr = c"Dual MIT/GPL";

/// A socket that a process holds, as the program writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holding {
    /// The process, by its number in the first pid namespace.
    pub(super) process: u32,
    /// When it started, nanoseconds since the boot, with the time that the host slept.
    pub(super) started_ns: u64,
    /// The socket.
    pub(super) inode: u64,
}

impl Holding {
    /// Reads a record of [`RECORD_BYTES`].
    pub(super) fn read(record: &[u8]) -> Option<Holding> {
        // The upper half of the first word is nought.
        let process = if cfg!(target_endian = "big") { 4 } else { 0 };
        Some(Holding { process: u32_at(record, process)?, started_ns: u64_at(record, 8)?, inode: u64_at(record, 16)? })
    }
}

/// Where in this kernel's memory is what the program reads: bytes from the start of each struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// The iterator's function.
    pub(super) function: TypeId,
    meta: i16,
    task: i16,
    file: i16,
    seq: i16,
    tgid: i16,
    group_leader: i16,
    start_boottime: i16,
    f_inode: i16,
    i_sb: i16,
    i_ino: i16,
    s_magic: i16,
}

impl Layout {
    /// As the kernel says.
    pub(super) fn of(btf: &Btf<'_>) -> Result<Layout, InvalidBtf> {
        let function = btf.function(ITERATOR)?;
        let argument = |name: &'static str| -> Result<(i16, TypeId), InvalidBtf> {
            let (index, kind) = btf.parameter(function, name)?;
            Ok((near(index * ARGUMENT_BYTES, name)?, btf.pointee(kind).ok_or(InvalidBtf::Absent(name))?))
        };
        let field = |of: TypeId, name: &'static str| -> Result<(i16, TypeId), InvalidBtf> {
            let field = btf.field(of, name)?;
            Ok((near(field.offset, name)?, field.kind))
        };
        let pointer = |of: TypeId, name: &'static str| -> Result<(i16, TypeId), InvalidBtf> {
            let (offset, kind) = field(of, name)?;
            Ok((offset, btf.pointee(kind).ok_or(InvalidBtf::Absent(name))?))
        };
        let (meta, meta_struct) = argument("meta")?;
        let (task, task_struct) = argument("task")?;
        let (file, file_struct) = argument("file")?;
        let (f_inode, inode_struct) = pointer(file_struct, "f_inode")?;
        let (i_sb, super_block) = pointer(inode_struct, "i_sb")?;
        Ok(Layout {
            function,
            meta,
            task,
            file,
            seq: field(meta_struct, "seq")?.0,
            tgid: field(task_struct, "tgid")?.0,
            group_leader: field(task_struct, "group_leader")?.0,
            start_boottime: field(task_struct, "start_boottime")?.0,
            f_inode,
            i_sb,
            i_ino: field(inode_struct, "i_ino")?.0,
            s_magic: field(super_block, "s_magic")?.0,
        })
    }

    /// The program.
    pub(super) fn program(&self) -> Vec<Instruction> {
        use Register::{Argument1, Argument2, Argument3, Frame, Kept1, Kept2, Kept3};
        let (context, task, file, inode) = (Kept1, Kept2, Kept3, Kept3);
        assemble(&[
            copy(context, Argument1),
            load(file, context, self.file),
            // There is none when everything has been gone through.
            end_if_zero(file),
            load(task, context, self.task),
            end_if_zero(task),
            load(inode, file, self.f_inode),
            load(Argument1, inode, self.i_sb),
            load(Argument1, Argument1, self.s_magic),
            end_unless(Argument1, SOCKFS_MAGIC),
            load_word(Argument1, task, self.tgid),
            store(Frame, RECORD, Argument1),
            load(Argument1, task, self.group_leader),
            load(Argument1, Argument1, self.start_boottime),
            store(Frame, RECORD + 8, Argument1),
            load(Argument1, inode, self.i_ino),
            store(Frame, RECORD + 16, Argument1),
            load(Argument1, context, self.meta),
            load(Argument1, Argument1, self.seq),
            copy(Argument2, Frame),
            add(Argument2, RECORD.into()),
            set(Argument3, RECORD_BYTES as i32),
            call(SEQ_WRITE),
        ])
    }
}

/// An offset as instructions have them.
fn near(offset: impl TryInto<i16>, name: &'static str) -> Result<i16, InvalidBtf> {
    offset.try_into().map_err(|_| InvalidBtf::Absent(name))
}

/// Registers of the kernel's machine for programs (Documentation/bpf/standardization/instruction-set.rst).
#[derive(Debug, Clone, Copy)]
enum Register {
    Outcome = 0,
    Argument1 = 1,
    Argument2 = 2,
    Argument3 = 3,
    /// Calls leave these as they are.
    Kept1 = 6,
    Kept2 = 7,
    Kept3 = 8,
    /// The end of the stack.
    Frame = 10,
}

/// A step of a program: an instruction, or one that jumps to its end.
#[derive(Debug, Clone, Copy)]
enum Step {
    Do(Instruction),
    End { code: u8, register: Register, compared: i32 },
}

fn on(code: u8, [to, from]: [Register; 2], offset: i16, immediate: i32) -> Step {
    Step::Do(Instruction::new(code, [to as u8, from as u8], offset, immediate))
}

/// `to = *(u64 *)(from + offset)`
fn load(to: Register, from: Register, offset: i16) -> Step {
    on(0x79, [to, from], offset, 0)
}

/// `to = *(u32 *)(from + offset)`
fn load_word(to: Register, from: Register, offset: i16) -> Step {
    on(0x61, [to, from], offset, 0)
}

/// `*(u64 *)(to + offset) = from`
fn store(to: Register, offset: i16, from: Register) -> Step {
    on(0x7b, [to, from], offset, 0)
}

/// `to = from`
fn copy(to: Register, from: Register) -> Step {
    on(0xbf, [to, from], 0, 0)
}

/// `to = value`
fn set(to: Register, value: i32) -> Step {
    on(0xb7, [to, Register::Outcome], 0, value)
}

/// `to += value`
fn add(to: Register, value: i32) -> Step {
    on(0x07, [to, Register::Outcome], 0, value)
}

/// Calls a function of the kernel.
fn call(function: i32) -> Step {
    on(0x85, [Register::Outcome; 2], 0, function)
}

/// `if (!register) return 0`
fn end_if_zero(register: Register) -> Step {
    Step::End { code: 0x15, register, compared: 0 }
}

/// `if (register != compared) return 0`
fn end_unless(register: Register, compared: i32) -> Step {
    Step::End { code: 0x55, register, compared }
}

/// The steps, and the end: `return 0`.
fn assemble(steps: &[Step]) -> Vec<Instruction> {
    let place = |(index, step): (usize, &Step)| match *step {
        Step::Do(instruction) => instruction,
        Step::End { code, register, compared } => {
            // From the next instruction to the one behind the last step.
            let distance = i16::try_from(steps.len() - index - 1).unwrap_or(i16::MAX);
            Instruction::new(code, [register as u8, 0], distance, compared)
        }
    };
    let [outcome, none] = [Register::Outcome as u8, 0];
    let end = [Instruction::new(0xb7, [outcome, none], 0, 0), Instruction::new(0x95, [none; 2], 0, 0)];
    steps.iter().enumerate().map(place).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_are_jumps_to_behind_the_last_step() {
        use Register::{Argument1, Kept1};
        let steps = [end_if_zero(Kept1), copy(Kept1, Argument1), end_unless(Argument1, 7)];
        let expected = [
            Instruction::new(0x15, [6, 0], 2, 0),
            Instruction::new(0xbf, [6, 1], 0, 0),
            Instruction::new(0x55, [1, 0], 0, 7),
            Instruction::new(0xb7, [0, 0], 0, 0),
            Instruction::new(0x95, [0, 0], 0, 0),
        ];
        assert_eq!(assemble(&steps), expected);
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_the_program_writes_it(process in any::<u32>(), started_ns in any::<u64>(), inode in any::<u64>()) {
            let words = [u64::from(process), started_ns, inode].map(u64::to_ne_bytes);
            let expected = Holding { process, started_ns, inode };
            prop_assert_eq!(Holding::read(words.as_flattened()), Some(expected));
            prop_assert_eq!(Holding::read(&words.as_flattened()[1..]), None);
        }
    }
}
