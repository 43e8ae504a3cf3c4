//! Which kernels a GPU runs: those for the newest architecture that it has what is needed for, or for the one that
//! LENSMITH_CUDA_PATH names; and whether epochs of training may be one launch.

/// What kernels are written for, each with what the ones before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// Compute capability 7.5: exact products in F32 alone.
    Sm75,
    /// 8.0: BF16 on tensor cores (`mma.sync`), copies that pass registers by.
    Sm80,
    /// 9.0: boxes of rows by the copy engine, and `wgmma`.
    Sm90,
    /// 10.0 and newer: 9.0 without `wgmma`.
    Sm100,
}

impl Architecture {
    /// All, rising.
    const ALL: [Architecture; 4] =
        [Architecture::Sm75, Architecture::Sm80, Architecture::Sm90, Architecture::Sm100];
    /// The environment variable that names one.
    const VARIABLE: &str = "LENSMITH_CUDA_PATH";

    /// The newest for a compute capability of at least 7.5.
    fn of((major, _): (u32, u32)) -> Architecture {
        match major {
            ..8 => Architecture::Sm75,
            8 => Architecture::Sm80,
            9 => Architecture::Sm90,
            _ => Architecture::Sm100,
        }
    }

    /// The one that a device takes: the newest, or an older one that LENSMITH_CUDA_PATH names, as in `sm80`.
    pub(super) fn choose(capability: (u32, u32)) -> Result<Architecture, String> {
        Self::wanted(capability, std::env::var(Self::VARIABLE).ok().as_deref())
    }

    fn wanted(capability: (u32, u32), wanted: Option<&str>) -> Result<Architecture, String> {
        let newest = Self::of(capability);
        let Some(wanted) = wanted.filter(|w| !w.is_empty()) else { return Ok(newest) };
        // Later GPUs have not all of 9.0.
        let runs = |a: &Architecture| *a < newest.min(Architecture::Sm90) || *a == newest;
        let known: Vec<Architecture> = Self::ALL.into_iter().filter(runs).collect();
        known.iter().copied().find(|a| a.name() == wanted).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|a| a.name()).collect();
            let ((major, minor), names, variable) = (capability, names.join(", "), Self::VARIABLE);
            format!("{variable}: a GPU of compute capability {major}.{minor} takes {names}, found `{wanted}`")
        })
    }

    /// As LENSMITH_CUDA_PATH names it.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Sm75 => "sm75",
            Architecture::Sm80 => "sm80",
            Architecture::Sm90 => "sm90",
            Architecture::Sm100 => "sm100",
        }
    }

    /// Whether there are products in BF16.
    pub fn has_tensor_cores(self) -> bool {
        self >= Architecture::Sm80
    }

    /// Whether the copy engine brings boxes of matrices in.
    pub fn has_tensor_maps(self) -> bool {
        self >= Architecture::Sm90
    }

    /// Whether four warps multiply together.
    pub fn has_wgmma(self) -> bool {
        self == Architecture::Sm90
    }
}

/// Whether training goes step by step also where an epoch fits one launch, as LENSMITH_CUDA_EPOCHS=steps asks for.
pub(super) fn by_steps() -> Result<bool, String> {
    steps_wanted(std::env::var("LENSMITH_CUDA_EPOCHS").ok().as_deref())
}

fn steps_wanted(wanted: Option<&str>) -> Result<bool, String> {
    match wanted {
        None | Some("") => Ok(false),
        Some("steps") => Ok(true),
        Some(other) => Err(format!("LENSMITH_CUDA_EPOCHS: takes steps, or nothing; found `{other}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_take_the_newest_or_the_one_that_is_named() {
        let chosen = |capability, wanted| Architecture::wanted(capability, wanted);
        assert_eq!(chosen((7, 5), None), Ok(Architecture::Sm75));
        assert_eq!(chosen((8, 9), Some("")), Ok(Architecture::Sm80));
        assert_eq!(chosen((9, 0), None), Ok(Architecture::Sm90));
        assert_eq!(chosen((12, 0), None), Ok(Architecture::Sm100));
        assert_eq!(chosen((9, 0), Some("sm80")), Ok(Architecture::Sm80));
        assert_eq!(chosen((12, 0), Some("sm75")), Ok(Architecture::Sm75));
        let refused = chosen((10, 0), Some("sm90")).expect_err("no wgmma there");
        assert!(refused.ends_with("10.0 takes sm75, sm80, sm100, found `sm90`"), "{refused}");
        let refused = chosen((8, 0), Some("sm_80")).expect_err("another word");
        assert!(refused.ends_with("8.0 takes sm75, sm80, found `sm_80`"), "{refused}");
    }
    #[test]
    fn epochs_go_step_by_step_where_that_is_asked_for() {
        assert_eq!([None, Some(""), Some("steps")].map(steps_wanted), [Ok(false), Ok(false), Ok(true)]);
        let refused = steps_wanted(Some("step")).expect_err("another word");
        assert!(refused.ends_with("takes steps, or nothing; found `step`"), "{refused}");
    }
}
