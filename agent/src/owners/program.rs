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

use crate::kernel::{
    assembly::{
        Register, SEQ_WRITE, add, assemble, call, copy, end_if_zero, end_unless, load, load_word, near, set, store,
    },
    bpf::Instruction,
    btf::{Btf, InvalidBtf, TypeId},
    bytes::{u32_at, u64_at},
};

/// Stands for going through the descriptors of all tasks (kernel/bpf/task_iter.c of the kernel).
const ITERATOR: &str = "bpf_iter_task_file";
/// Bytes of an argument of a program.
const ARGUMENT_BYTES: usize = 8;
/// The magic number of the file system that sockets are in (include/uapi/linux/magic.h). An S_IFSOCK would not do: that is
/// also the name of a UNIX socket in any other file system, which can be opened with O_PATH.
const SOCKFS_MAGIC: i32 = 0x534f_434b;
/// Bytes of what is written for a socket.
pub(super) const RECORD_BYTES: usize = 24;
/// How many bytes of the stack that is, below its end.
const RECORD: i16 = -24;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
