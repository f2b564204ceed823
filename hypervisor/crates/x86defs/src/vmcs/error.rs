//! Why a VMX instruction failed (SDM: "VM Instruction Error Numbers").

use core::fmt;

/// The VM-instruction error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct InstructionError(pub u32);

impl InstructionError {
    /// VMLAUNCH or VMRESUME: the control fields are wrong.
    pub const INVALID_CONTROLS: Self = Self(7);
    /// VMLAUNCH or VMRESUME: the host's fields are wrong.
    pub const INVALID_HOST_STATE: Self = Self(8);

    /// Meaning of the number.
    const fn meaning(self) -> &'static str {
        match self.0 {
            1 => "VMCALL executed in VMX root operation",
            2 => "VMCLEAR with an invalid physical address",
            3 => "VMCLEAR with the VMXON pointer",
            4 => "VMLAUNCH with a VMCS that is not clear",
            5 => "VMRESUME with a VMCS that is not launched",
            6 => "VMRESUME after VMXOFF",
            7 => "VM entry with invalid control fields",
            8 => "VM entry with invalid host-state fields",
            9 => "VMPTRLD with an invalid physical address",
            10 => "VMPTRLD with the VMXON pointer",
            11 => "VMPTRLD with an incorrect VMCS revision identifier",
            12 => "VMREAD or VMWRITE of a component that does not exist",
            13 => "VMWRITE to a read-only component",
            15 => "VMXON executed in VMX root operation",
            16 => "VM entry with an invalid executive-VMCS pointer",
            17 => "VM entry with a non-launched executive VMCS",
            18 => "VM entry with an executive-VMCS pointer that is not the VMXON pointer",
            19 => "VMCALL with a VMCS that is not clear",
            20 => "VMCALL with invalid VM-exit control fields",
            22 => "VMCALL with an incorrect MSEG revision identifier",
            23 => "VMXOFF under dual-monitor treatment",
            24 => "VMCALL with invalid SMM-monitor features",
            25 => "VM entry from SMM with invalid VM-execution control fields",
            26 => "VM entry with events blocked by MOV SS",
            28 => "invalid operand of INVEPT or INVVPID",
            _ => "a number that the manual does not list",
        }
    }
}

impl fmt::Display for InstructionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.meaning())
    }
}
