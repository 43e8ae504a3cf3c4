//! The parameters of kernels, one structure a kernel (or for all of a kind), as `kernels/include/{params,train_params}.cuh` have them:
//! the same names in the same order, with pointers as addresses. What fields mean is said there.

#![allow(
    missing_docs,
    reason = "fields are those of kernels/include/params.cuh and train_params.cuh, where each is explained"
)]

use bytemuck::{Pod, Zeroable};

use crate::backend::NoiseKey;

/// Defines structures of the names, sizes in bytes and fields given.
macro_rules! structures {
    ($($(#[$attribute:meta])* $name:ident = $size:literal { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$attribute])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
            pub struct $name {
                $(pub $field: $type,)*
            }

            const _: () = assert!(size_of::<$name>() == $size && $size % 8 == 0);
        )*

        /// Names and sizes.
        #[cfg(test)]
        const SIZES: &[(&str, usize)] = &[$((stringify!($name), $size)),*];
    };
}

structures! {
    /// Whose noise it is, and how much.
    Noise = 24 {
        seed: u64,
        first_row: u64,
        side: u32,
        sigma: f32,
    }
    /// Latents, stored or drawn.
    Latents = 56 {
        z: u64,
        owners: u64,
        samples: u64,
        starts: u64,
        noise: Noise,
    }
    /// What residual decoding adds to.
    Seeds = 24 {
        embeddings: u64,
        mu: u64,
        dtype: u32,
        unused: u32,
    }
    /// Parameters of `encode_*`.
    Encode = 112 {
        embeddings: u64,
        rows: u64,
        w1: u64,
        b1: u64,
        w2: u64,
        b2: u64,
        mu: u64,
        logvar: u64,
        z: u64,
        noise: Noise,
        dim: u32,
        hidden: u32,
        latent: u32,
        unused: u32,
    }
    /// What the copy engine knows of a matrix: [`super::driver::Driver::tensor_map`].
    TensorMap = 128 {
        opaque: [u64; 16],
    }
    /// Parameters of `encode_tma_*`.
    EncodeTma = 384 {
        embeddings: TensorMap,
        w1: TensorMap,
        of: Encode,
        unused: [u64; 2],
    }
    /// Parameters of `decode_*`.
    Decode = 144 {
        source: Latents,
        count: u64,
        w1: u64,
        b1: u64,
        w2: u64,
        b2: u64,
        seeds: Seeds,
        out: u64,
        dim: u32,
        hidden: u32,
        latent: u32,
        columns: u32,
    }
    /// Both halves of a VAE over rows of embeddings.
    Autoencoder = 128 {
        embeddings: u64,
        rows: u64,
        w1: u64,
        b1: u64,
        w2: u64,
        b2: u64,
        w3: u64,
        b3: u64,
        w4: u64,
        b4: u64,
        noise: Noise,
        dim: u32,
        hidden: u32,
        latent: u32,
        dtype: u32,
        mean: u32,
        unused: u32,
    }
    /// Parameters of `synthesize_*`.
    Synthesize = 160 {
        of: Autoencoder,
        out: u64,
        candidates: u64,
        keep: u32,
        drawn: u32,
        likelihood: u32,
        residual: u32,
    }
    /// Parameters of `reconstruct_*`.
    Reconstruct = 168 {
        of: Autoencoder,
        mean: u64,
        scale: u64,
        mu: u64,
        logvar: u64,
        out: u64,
    }
    /// Parameters of `score_*` of embeddings.
    Score = 72 {
        embeddings: u64,
        rows: u64,
        w1: u64,
        b1: u64,
        w2: u64,
        out: u64,
        pre: u64,
        dim: u32,
        width: u32,
        b2: f32,
        relu: u32,
    }
    /// Parameters of `score_wgmma_*`.
    ScoreWgmma = 384 {
        embeddings: TensorMap,
        w1: TensorMap,
        of: Score,
        unused: [u64; 7],
    }
    /// Parameters of `score_latents_*`.
    ScoreLatents = 144 {
        source: Latents,
        count: u64,
        w1: u64,
        b1: u64,
        folded: u64,
        folded_bias: u64,
        w2: u64,
        base_pre: u64,
        base_mu: u64,
        out: u64,
        latent: u32,
        hidden: u32,
        width: u32,
        b2: f32,
    }
    /// Parameters of `layer_*`.
    Layer = 136 {
        x: u64,
        rows: u64,
        w: u64,
        bias: u64,
        out: u64,
        source: Latents,
        seeds: Seeds,
        depth: u32,
        outputs: u32,
        relu: u32,
        unused: u32,
    }
    /// Parameters of `subtract_rows`.
    SubtractRows = 88 {
        out: u64,
        of: u64,
        source: Latents,
        rows: u64,
        width: u32,
        unused: u32,
    }
    /// Parameters of `head_f32`.
    Head = 40 {
        pre: u64,
        w2: u64,
        out: u64,
        rows: u64,
        width: u32,
        b2: f32,
    }
    /// Parameters of `select_f32`.
    Select = 80 {
        mu: u64,
        logvar: u64,
        out: u64,
        rows: u64,
        noise: Noise,
        latent: u32,
        keep: u32,
        drawn: u32,
        likelihood: u32,
        mean: u32,
        unused: u32,
    }
    /// Parameters of `start_f32`.
    Start = 64 {
        mu: u64,
        logvar: u64,
        out: u64,
        rows: u64,
        noise: Noise,
        latent: u32,
        unused: u32,
    }
    /// Parameters of `perturb_f32`.
    Perturb = 64 {
        starts: u64,
        samples: u64,
        out: u64,
        count: u64,
        noise: Noise,
        latent: u32,
        unused: u32,
    }
    /// Parameters of `pick_rows`.
    PickRows = 40 {
        from: u64,
        index: u64,
        out: u64,
        count: u64,
        row_bytes: u32,
        unused: u32,
    }
    /// Parameters of `find_non_finite_*`.
    FindNonFinite = 24 {
        values: u64,
        first: u64,
        count: u64,
    }
    /// Parameters of `floor_*`.
    Floor = 24 {
        from: u64,
        out: u64,
        n: u64,
    }
    /// A training step, in memory.
    Step = 24 {
        first: u32,
        pairs: u32,
        wide: u32,
        candidate: u32,
        rate: f32,
        inverse_root: f32,
    }
    /// Parameters of `end_step`, and of the end of `adam_f32`.
    EndStep = 48 {
        losses: u64,
        totals: u64,
        table: u64,
        turn: u64,
        now: u64,
        count: u32,
        terms: u32,
    }
    /// Parameters of `adam_f32`.
    Adam = 120 {
        w: u64,
        g: u64,
        m: u64,
        v: u64,
        end: EndStep,
        ticket: u64,
        n: u64,
        beta1: f32,
        keep1: f32,
        beta2: f32,
        keep2: f32,
        eps: f32,
        decay: f32,
    }
    /// Parameters of `product_nt_*` and `product_nn_*`.
    Product = 128 {
        a: u64,
        b: u64,
        out: u64,
        bias: u64,
        mask: u64,
        limit: u64,
        c: u64,
        d: u64,
        sums: u64,
        partial: u64,
        tickets: u64,
        m: u32,
        n: u32,
        k: u32,
        l: u32,
        lda: u32,
        ldb: u32,
        ldo: u32,
        relu: u32,
        add: u32,
        slices: u32,
    }
    /// Parameters of `product_tn_*`.
    Products = 528 {
        of: [Product; 4],
        blocks: [u32; 4],
    }
    /// Where rows of a batch come from.
    Sources = 48 {
        rows: [u64; 4],
        dtype: [u32; 4],
    }
    /// Parameters of `gather_pairs`.
    GatherPairs = 96 {
        from: Sources,
        order: u64,
        now: u64,
        mean: u64,
        std: u64,
        x: u64,
        dim: u32,
        batch: u32,
    }
    /// Parameters of `gather_rows`.
    GatherRows = 112 {
        from: Sources,
        rows: u64,
        now: u64,
        mean: u64,
        std: u64,
        x: u64,
        seed: u64,
        dim: u32,
        batch: u32,
        noise: f32,
        unused: u32,
    }
    /// Parameters of `vae_codes`.
    VaeCodes = 104 {
        code: u64,
        order: u64,
        now: u64,
        eps: u64,
        z: u64,
        dcode: u64,
        losses: u64,
        seed: u64,
        beta: f64,
        gamma: f64,
        w2_eps: f64,
        batch: u32,
        latent: u32,
        squared: u32,
        unused: u32,
    }
    /// Parameters of `vae_reconstruct`.
    VaeReconstruct = 64 {
        out: u64,
        bias: u64,
        x: u64,
        now: u64,
        losses: u64,
        scale: f64,
        batch: u32,
        dim: u32,
        stretch: u32,
        unused: u32,
    }
    /// Parameters of `vae_through_sample`.
    VaeThroughSample = 40 {
        code: u64,
        eps: u64,
        dz: u64,
        dcode: u64,
        rows: u32,
        latent: u32,
    }
    /// Parameters of `vae_epoch_*`.
    VaeEpoch = 376 {
        from: Sources,
        order: u64,
        steps: u64,
        mean: u64,
        std: u64,
        w: u64,
        m: u64,
        v: u64,
        x: u64,
        partial: u64,
        encoder_hidden: u64,
        decoder_hidden: u64,
        encoder_dhidden: u64,
        decoder_dhidden: u64,
        code: u64,
        dcode: u64,
        eps: u64,
        z: u64,
        out: u64,
        errors: u64,
        losses: u64,
        totals: u64,
        arrived: u64,
        seed: u64,
        beta: f64,
        gamma: f64,
        w2_eps: f64,
        scale: f64,
        weight: [u32; 4],
        bias: [u32; 4],
        row_slices: [u32; 4],
        slices: u32,
        deep: u32,
        count: u32,
        batch: u32,
        dim: u32,
        hidden: u32,
        latent: u32,
        squared: u32,
        scratch: u32,
        beta1: f32,
        keep1: f32,
        beta2: f32,
        keep2: f32,
        adam_eps: f32,
        decay: f32,
        unused: u32,
    }
    /// The samples of both sides.
    Samples = 48 {
        z: [u64; 2],
        owners: [u64; 2],
        mu: [u64; 2],
    }
    /// Parameters of `reward_hidden`.
    RewardHidden = 104 {
        of: Samples,
        rows: u64,
        now: u64,
        w1: u64,
        b1: u64,
        out: u64,
        batch: u32,
        hidden: u32,
        latent: u32,
        unused: u32,
    }
    /// Parameters of `reward_head`.
    RewardHead = 96 {
        act: u64,
        w2: u64,
        b2: u64,
        reward: u64,
        slots: u64,
        now: u64,
        slope: u64,
        db2: u64,
        losses: u64,
        tickets: u64,
        batch: u32,
        heads: u32,
        units: u32,
        unused: u32,
    }
    /// Parameters of `reward_backward`.
    RewardBackward = 64 {
        act: u64,
        slope: u64,
        w2: u64,
        dpre: u64,
        db1: u64,
        dw2: u64,
        rows: u32,
        width: u32,
        units: u32,
        unused: u32,
    }
}

impl Noise {
    /// The noise of a key, with this standard deviation.
    pub fn new(key: NoiseKey, sigma: f32) -> Noise {
        Noise { seed: key.seed, first_row: key.first_row, side: key.side as u32, sigma }
    }
}

impl Step {
    /// Offset of `wide` in bytes.
    pub const WIDE: u64 = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nvcc holds the sizes that stand there against its structures, this against ours.
    #[test]
    fn structures_are_those_of_the_kernels() {
        let include = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/include");
        let text = ["params.cuh", "train_params.cuh"]
            .map(|name| std::fs::read_to_string(include.join(name)).expect("the source is there"))
            .concat();
        let theirs: Vec<(String, usize)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("static_assert(sizeof(")?.strip_suffix(");"))
            .map(|line| {
                let (name, size) = line.split_once(") == ").expect("a size");
                let words = name.split('<').next().unwrap_or(name).split('_');
                let camel = words.map(|w| w[..1].to_uppercase() + &w[1..]).collect();
                (camel, size.parse().expect("a number"))
            })
            .collect();
        let ours: Vec<_> = SIZES.iter().map(|(name, size)| (name.to_string(), *size)).collect();
        assert_eq!(ours, theirs);
    }
}
