//! Programs for the kernel's machine (Documentation/bpf/standardization/instruction-set.rst), put together without a compiler.

use std::ffi::CStr;

use super::{bpf::Instruction, btf::InvalidBtf};

/// Some functions of the kernel are only for programs that may be linked with the GPL. These are under the licenses of the
/// project, MIT or Apache-2.0, and what is under the MIT license may be passed on under the GPL: this is the kernel's word for
/// that (include/linux/license.h).
pub(crate) const LICENSE: &CStr = c"Dual MIT/GPL";
/// `bpf_seq_write` (include/uapi/linux/bpf.h).
pub(crate) const SEQ_WRITE: i32 = 127;

/// An offset as instructions have them.
pub(crate) fn near(offset: impl TryInto<i16>, name: &'static str) -> Result<i16, InvalidBtf> {
    offset.try_into().map_err(|_| InvalidBtf::Absent(name))
}

/// Registers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Register {
    Outcome = 0,
    Argument1 = 1,
    Argument2 = 2,
    Argument3 = 3,
    /// Calls leave these as they are.
    Kept1 = 6,
    Kept2 = 7,
    Kept3 = 8,
    Kept4 = 9,
    /// The end of the stack.
    Frame = 10,
}

/// A place in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(pub(crate) u8);

/// Behind the last step, as is each label that stands nowhere: `return 0`.
pub(crate) const END: Label = Label(u8::MAX);

/// A step of a program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// An instruction.
    Do(Instruction),
    /// One that goes on elsewhere.
    Branch { code: u8, registers: [u8; 2], compared: i32, to: Label },
    /// None, but a place to go on at.
    Here(Label),
}

fn on(code: u8, [to, from]: [Register; 2], offset: i16, immediate: i32) -> Step {
    Step::Do(Instruction::new(code, [to as u8, from as u8], offset, immediate))
}

/// `to = *(u64 *)(from + offset)`
pub(crate) fn load(to: Register, from: Register, offset: i16) -> Step {
    on(0x79, [to, from], offset, 0)
}

/// `to = *(u32 *)(from + offset)`
pub(crate) fn load_word(to: Register, from: Register, offset: i16) -> Step {
    on(0x61, [to, from], offset, 0)
}

/// `to = *(u16 *)(from + offset)`
pub(crate) fn load_half(to: Register, from: Register, offset: i16) -> Step {
    on(0x69, [to, from], offset, 0)
}

/// `to = *(u8 *)(from + offset)`
pub(crate) fn load_byte(to: Register, from: Register, offset: i16) -> Step {
    on(0x71, [to, from], offset, 0)
}

/// `*(u64 *)(to + offset) = from`
pub(crate) fn store(to: Register, offset: i16, from: Register) -> Step {
    on(0x7b, [to, from], offset, 0)
}

/// `*(u32 *)(to + offset) = from`
pub(crate) fn store_word(to: Register, offset: i16, from: Register) -> Step {
    on(0x63, [to, from], offset, 0)
}

/// `*(u16 *)(to + offset) = from`
pub(crate) fn store_half(to: Register, offset: i16, from: Register) -> Step {
    on(0x6b, [to, from], offset, 0)
}

/// `to = from`
pub(crate) fn copy(to: Register, from: Register) -> Step {
    on(0xbf, [to, from], 0, 0)
}

/// `to = value`
pub(crate) fn set(to: Register, value: i32) -> Step {
    on(0xb7, [to, Register::Outcome], 0, value)
}

/// `to += value`
pub(crate) fn add(to: Register, value: i32) -> Step {
    on(0x07, [to, Register::Outcome], 0, value)
}

/// `to += from`
pub(crate) fn sum(to: Register, from: Register) -> Step {
    on(0x0f, [to, from], 0, 0)
}

/// `to -= from`
pub(crate) fn difference(to: Register, from: Register) -> Step {
    on(0x1f, [to, from], 0, 0)
}

/// `to <<= from`
pub(crate) fn shift(to: Register, from: Register) -> Step {
    on(0x6f, [to, from], 0, 0)
}

/// `to <<= bits`
pub(crate) fn shift_left(to: Register, bits: i32) -> Step {
    on(0x67, [to, Register::Outcome], 0, bits)
}

/// `to >>= bits`
pub(crate) fn shift_right(to: Register, bits: i32) -> Step {
    on(0x77, [to, Register::Outcome], 0, bits)
}

/// `to &= mask`
pub(crate) fn mask(to: Register, mask: i32) -> Step {
    on(0x57, [to, Register::Outcome], 0, mask)
}

/// Calls a function that programs are given by its number.
pub(crate) fn call(function: i32) -> Step {
    on(0x85, [Register::Outcome; 2], 0, function)
}

/// Calls a function of the kernel by its number in the kernel's BTF.
pub(crate) fn call_kernel(function: i32) -> Step {
    Step::Do(Instruction::new(0x85, [0, 2], 0, function))
}

/// `goto to`
pub(crate) fn go(to: Label) -> Step {
    Step::Branch { code: 0x05, registers: [0; 2], compared: 0, to }
}

/// Goes elsewhere after so many times that the kernel thinks it an endless loop (`may_goto`, since Linux 6.9).
pub(crate) fn go_if_endless(to: Label) -> Step {
    Step::Branch { code: 0xe5, registers: [0; 2], compared: 0, to }
}

/// `if (register == compared) goto to`
pub(crate) fn go_if(register: Register, compared: i32, to: Label) -> Step {
    Step::Branch { code: 0x15, registers: [register as u8, 0], compared, to }
}

/// `if (register != compared) goto to`
pub(crate) fn go_unless(register: Register, compared: i32, to: Label) -> Step {
    Step::Branch { code: 0x55, registers: [register as u8, 0], compared, to }
}

/// `if (one != other) goto to`
pub(crate) fn go_unless_same(one: Register, other: Register, to: Label) -> Step {
    Step::Branch { code: 0x5d, registers: [one as u8, other as u8], compared: 0, to }
}

/// `if (one >= other) goto to`
pub(crate) fn go_unless_less(one: Register, other: Register, to: Label) -> Step {
    Step::Branch { code: 0x3d, registers: [one as u8, other as u8], compared: 0, to }
}

/// `if (!register) return 0`
pub(crate) fn end_if_zero(register: Register) -> Step {
    go_if(register, 0, END)
}

/// `if (register != compared) return 0`
pub(crate) fn end_unless(register: Register, compared: i32) -> Step {
    go_unless(register, compared, END)
}

/// The steps, and the end: `return 0`.
pub(crate) fn assemble(steps: &[Step]) -> Vec<Instruction> {
    let is_instruction = |step: &&Step| !matches!(step, Step::Here(_));
    let count = |steps: &[Step]| i16::try_from(steps.iter().filter(is_instruction).count()).unwrap_or(i16::MAX);
    let place = |label: Label| {
        let found = steps.iter().position(|step| matches!(step, Step::Here(here) if *here == label));
        count(&steps[..found.unwrap_or(steps.len())])
    };
    let end = [Instruction::new(0xb7, [0; 2], 0, 0), Instruction::new(0x95, [0; 2], 0, 0)];
    let made = steps.iter().enumerate().filter_map(|(index, step)| match *step {
        Step::Do(instruction) => Some(instruction),
        Step::Branch { code, registers, compared, to } => {
            // From the next instruction on.
            let distance = place(to) - count(&steps[..index]) - 1;
            Some(Instruction::new(code, registers, distance, compared))
        }
        Step::Here(_) => None,
    });
    made.chain(end).collect()
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_label_is_the_instruction_behind_it_before_and_after() {
        use Register::{Argument1, Kept1};
        let [again, over] = [Label(0), Label(1)];
        let steps = [
            Step::Here(again),
            copy(Kept1, Argument1),
            go_if(Kept1, 1, over),
            go(again),
            Step::Here(over),
            set(Kept1, 0),
            go_if_endless(END),
        ];
        let expected = [
            Instruction::new(0xbf, [6, 1], 0, 0),
            Instruction::new(0x15, [6, 0], 1, 1),
            Instruction::new(0x05, [0, 0], -3, 0),
            Instruction::new(0xb7, [6, 0], 0, 0),
            Instruction::new(0xe5, [0, 0], 0, 0),
        ];
        assert_eq!(assemble(&steps)[..5], expected);
    }
}
