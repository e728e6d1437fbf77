// network.h - an AutoencoderKL as weights on a device, and what it appends to a program.
//
//     encoder:  conv_in, levels (resnets, sample = conv of stride 2), mid, norm_out, conv_out,
//     quant decoder:  quant, conv_in, mid, levels (resnets, sample = upsampling conv), norm_out,
//     conv_out mid:      resnet, attention, resnet resnet:   x +
//     conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1 where the width
//               changes
//
// Both halves are kept in the order in which an image or a latent runs through them.

#ifndef MODELS_VAE_NETWORK_H
#define MODELS_VAE_NETWORK_H

#include "kernels/kernels.h"
#include "models/model.h"

// The most resnets of one level: the decoder has one more than blocks_per_level.
#define NETWORK_RESNETS_MAX 9u

// Widths and counts above these are no AutoencoderKL of this world.
#define NETWORK_CHANNELS_MAX 8192u
#define NETWORK_LATENT_CHANNELS_MAX 256u

struct network_norm {
    const struct weight *gamma, *beta;  // [c]
};

struct network_layer {
    const struct weight *weight;  // [k, c, r, r]; NULL: this layer is not there
    const struct weight *bias;    // [k]
    uint32_t c, k;                // channels in and out
};

struct network_resnet {
    struct network_norm norm1, norm2;
    struct network_layer conv1, conv2;
    struct network_layer shortcut;  // where conv1 changes the width
};

struct network_attention {
    struct network_norm norm;
    struct network_layer qkv;  // 1x1, k = 3 c: query, key and value side by side; may be missing
    struct network_layer out;  // 1x1
};

struct network_level {
    struct network_resnet resnets[NETWORK_RESNETS_MAX];
    uint32_t resnets_count;
    struct network_layer sample;  // to the next level; missing in the last
};

struct network_half {
    struct network_layer quant;  // quant_conv or post_quant_conv; may be missing
    struct network_layer conv_in, conv_out;
    struct network_level levels[VAE_LEVELS_MAX];
    struct network_resnet mid[2];
    struct network_attention attention;
    struct network_norm norm_out;
};

struct network {
    struct vae_config config;
    struct device *device;
    struct tensor_table *tensors;  // shared, keeps the mapping that weights may read
    struct network_half encoder;   // with config.encoder
    struct network_half decoder;   // with config.decoder
    struct weight **weights;       // all of them, owned
    uint32_t weights_count;
    uint32_t weights_capacity;
    uint64_t bytes;  // of the tensors used and of what the device made of them
};

// Checks the configuration and puts the weights of both halves on the device. *self is all zeros;
// whatever happens, network_clear cleans it up.
// Errors:    INVALID_ARGUMENT names the tensor or the number; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status network_load(struct network *self, struct device *device, struct tensor_table *tensors,
                         const struct vae_config *config, struct error *error);

// What network_load is going to hold, network.bytes, exactly; no tensor is read.
// Errors:    INVALID_ARGUMENT as network_load.
// Thread:    any.
enum status network_plan(uint64_t *out, struct device *device, struct tensor_table *tensors,
                         const struct vae_config *config, struct error *error);

// Gives the weights back; nothing is left to be done after a failed load, or for all zeros.
// Thread:    any.
void network_clear(struct network *self);

// Pixels of one latent: 2^(levels - 1).
// Thread:    any.
uint32_t network_factor(const struct vae_config *config);

// An activation tensor [1, h, w, c] on its way through a program.
struct network_flow {
    struct program *program;
    struct value x;           // owned by the flow: it releases what it has used
    struct value statistics;  // of x for a norm that follows, or VALUE_NONE
    uint32_t h, w, c;
};

// Appends the encoder: pixels [1, h, w, 3] to moments [1, h / factor, w / factor, c], the mean in
// the first latent_channels. h and w are multiples of the factor.
// Errors:    through program_finish.
// Thread:    the program's builder.
void network_encode(const struct network *self, struct network_flow *flow);

// Appends the decoder: a latent [1, h, w, latent_channels] to [1, h factor, w factor, 3].
// Errors:    through program_finish.
// Thread:    the program's builder.
void network_decode(const struct network *self, struct network_flow *flow);

#endif  // MODELS_VAE_NETWORK_H
