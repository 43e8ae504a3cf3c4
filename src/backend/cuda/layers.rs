//! Inference of models whose layers do not fit a block's shared memory: layer by layer, with the hidden layer of some
//! rows in device memory. The same results, bit for bit in F32, by more traffic.

use super::context::Cuda;
use super::data::{DeviceFolded, DeviceVae, Latents, Layer, ResidualBase, RowsAt};
use super::driver::DriverResult;
use super::infer::{EncoderOutputs, FoldedBase, kernel};
use super::launch::u32_of;
use super::layout;
use super::memory::Buffer;
use super::params;
use crate::backend::{NoiseKey, Precision};
use crate::dtype::Dtype;

/// Bytes that hidden layers take at a time.
const HIDDEN_BYTES: usize = 64 << 20;

/// Rows whose values, so many each, are in memory at a time.
fn rows_at_once(values: usize) -> usize {
    (HIDDEN_BYTES / (values * size_of::<f32>())).max(1)
}

impl Layer {
    /// A layer over F32 rows, which it reads at `x`; results go to `out`.
    fn over(&self, (x, rows): (u64, usize), (depth, outputs): (usize, usize), out: u64) -> params::Layer {
        params::Layer {
            x,
            rows: rows as u64,
            w: self.weight(),
            bias: self.bias.address(),
            out,
            depth: u32_of(depth),
            outputs: u32_of(outputs),
            ..Default::default()
        }
    }
}

impl Cuda {
    /// What [`Cuda::launch_encode`] does.
    pub(super) fn encode_by_layers(
        &self,
        vae: &DeviceVae,
        rows: RowsAt,
        to: EncoderOutputs,
        key: Option<NoiseKey>,
    ) -> DriverResult<()> {
        let size = vae.host.size();
        let (dim, hidden, latent) = (size.dim, size.hidden, size.latent);
        let [first_layer, second] = &vae.encoder;
        let most = rows_at_once(hidden).min(rows.rows);
        let h = self.buffer::<f32>(most * hidden, "hidden layer")?;
        for first in (0..rows.rows).step_by(most) {
            let count = most.min(rows.rows - first);
            let address = rows.address + (first * dim * rows.dtype.size()) as u64;
            let params = params::Score {
                w1: first_layer.weight(),
                b1: first_layer.bias.address(),
                // Read, though no reward comes of it.
                w2: first_layer.bias.address(),
                pre: h.address(),
                dim: u32_of(dim),
                width: u32_of(hidden),
                relu: 1,
                ..Default::default()
            };
            self.launch_score_of(RowsAt { address, rows: count, ..rows }, params)?;
            let at = |address: u64| address + (first * latent * size_of::<f32>()) as u64;
            let of = EncoderOutputs { mu: at(to.mu), logvar: at(to.logvar), z: at(to.z) };
            for (half, out) in [of.mu, of.logvar].into_iter().enumerate() {
                let params = params::Layer {
                    w: second.weight_at(half * latent * hidden),
                    bias: second.bias.at(half * latent),
                    ..second.over((h.address(), count), (hidden, latent), out)
                };
                self.launch_layer(params, Dtype::F32)?;
            }
            if let Some(key) = key.filter(|_| to.z != 0) {
                let key = NoiseKey { first_row: key.first_row + first as u64, ..key };
                self.launch_start(of, (count, latent), key)?;
            }
        }
        Ok(())
    }

    /// What [`Cuda::launch_decode`] does.
    pub(super) fn decode_by_layers(
        &self,
        vae: &DeviceVae,
        (latents, first, count): (&Latents, usize, usize),
        base: Option<ResidualBase>,
        (out, dtype): (u64, Dtype),
    ) -> DriverResult<()> {
        let size = vae.host.size();
        let (dim, hidden) = (size.dim, size.hidden);
        let means = base.map(|b| self.hidden_of_means(&vae.decoder[0], b.mu, latents, hidden)).transpose()?;
        let most = rows_at_once(hidden).min(count);
        for from in (first..first + count).step_by(most) {
            let count = most.min(first + count - from);
            let h = self.hidden_of((&vae.decoder[0], hidden), latents, (from, count), means.as_ref())?;
            let out = out + ((from - first) * dim * dtype.size()) as u64;
            let mut params = vae.decoder[1].over((h.address(), count), (hidden, dim), out);
            if let Some(base) = base {
                params.source = latents.params(from);
                (params.seeds.embeddings, params.seeds.dtype) = (base.embeddings, base.dtype as u32);
            }
            self.launch_layer(params, dtype)?;
        }
        Ok(())
    }

    /// What [`Cuda::launch_score_latents`] does.
    pub(super) fn score_latents_by_layers(
        &self,
        folded: &DeviceFolded,
        latents: &Latents,
        base: Option<&FoldedBase>,
        out: &Buffer<f32>,
    ) -> DriverResult<()> {
        let (hidden, size) = (folded.size.hidden, folded.reward.host.size());
        let width = size.hidden;
        let means = base.map(|b| self.hidden_of_means(&folded.decoder, b.mu, latents, hidden)).transpose()?;
        let most = rows_at_once(hidden.max(width)).min(latents.count());
        let pre = self.buffer::<f32>(most * width, "pre-activations")?;
        for first in (0..latents.count()).step_by(most) {
            let count = most.min(latents.count() - first);
            let h = self.hidden_of((&folded.decoder, hidden), latents, (first, count), means.as_ref())?;
            let mut params = folded.folded.over((h.address(), count), (hidden, width), pre.address());
            if let Some(base) = base {
                params.source = latents.params(first);
                (params.seeds.embeddings, params.seeds.dtype) = (base.pre.address(), Dtype::F32 as u32);
            }
            self.launch_layer(params, Dtype::F32)?;
            let params = params::Head {
                pre: pre.address(),
                w2: folded.reward.second.address(),
                out: out.at(first),
                rows: count as u64,
                width: u32_of(width),
                b2: folded.reward.host.layers[1].bias[0],
            };
            self.driver.launch(&self.tiled("head_f32", count, layout::elementwise(64), 1, params)?)?;
        }
        Ok(())
    }

    /// The hidden layer of a decoder for latents `first .. first + count`, `[count, hidden]`, less that of their seeds'
    /// means where these are given.
    fn hidden_of(
        &self,
        (layer, hidden): (&Layer, usize),
        latents: &Latents,
        (first, count): (usize, usize),
        means: Option<&Buffer<f32>>,
    ) -> DriverResult<Buffer<f32>> {
        let (source, _drawn) = self.in_memory(latents, first, count)?;
        let h = self.buffer::<f32>(count * hidden, "hidden layer")?;
        let params = layer.over((source.z, count), (latents.latent, hidden), h.address());
        self.launch_layer(params::Layer { relu: 1, ..params }, Dtype::F32)?;
        if let Some(means) = means {
            let params = params::SubtractRows {
                out: h.address(),
                of: means.address(),
                source,
                rows: count as u64,
                width: u32_of(hidden),
                ..Default::default()
            };
            let block = layout::elementwise(1024);
            self.driver.launch(&self.tiled("subtract_rows", count * hidden, block, 1, params)?)?;
        }
        Ok(h)
    }

    /// The same of the means at `mu` of all seeds that latents have.
    fn hidden_of_means(
        &self,
        layer: &Layer,
        mu: u64,
        latents: &Latents,
        hidden: usize,
    ) -> DriverResult<Buffer<f32>> {
        let seeds = latents.rows.iter().max().map_or(1, |&last| last as usize + 1);
        let h = self.buffer::<f32>(seeds * hidden, "hidden layer of means")?;
        let params = layer.over((mu, seeds), (latents.latent, hidden), h.address());
        self.launch_layer(params::Layer { relu: 1, ..params }, Dtype::F32)?;
        Ok(h)
    }

    fn launch_layer(&self, params: params::Layer, out: Dtype) -> DriverResult<()> {
        let kernel = kernel!("layer", self.precision, out);
        let block = layout::layer(self.precision);
        self.driver.launch(&self.tiled(kernel, params.rows as usize, block, 1, params)?)
    }
}
