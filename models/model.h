// model.h - what a set of files is: which networks are in it, under which names, how large.
//
// A model is one checkpoint (SD1.5, SD2, SDXL: UNet and all) or several files (a VAE, CLIP-L,
// bigG). Only headers are read here. The networks get tables with canonical names, whatever the
// file calls them: the VAE in diffusers' names, the encoders in Hugging Face's (text_model....),
// and no copy is made.
//
// What the canonical tables hold:
//     VAE   encoder.* decoder.* quant_conv.* post_quant_conv.*, in diffusers' newest names; the
//           middle's attention as matrices, ....attentions.0.to_q.weight [C,C]. Halves, quant
//           convolutions and the middle's attention may be absent: vae_config says so.
//     CLIP  text_model.* and, when the file has it, text_projection.weight [P,W] (a transposed
//           view in OpenCLIP's files). OpenCLIP's fused in_proj is three views.
// All of them are f32, f16 or bf16. Anything else in a file is left alone.
//
// Which encoder a file's CLIP is: in a checkpoint the prefix of its names tells ("conditioner.
// embedders.1." is bigG, "clip_l." is L, ...). For a file of one bare encoder, the first of these:
//     1. its metadata "luna.encoder" is "l", "h" or "g" (safetensors only);
//     2. its width is 768: L, 1024: H, 1280: bigG;
//     3. it has a text_projection: bigG, else L.
//
// A file that holds one network replaces the same network of a checkpoint named before it (a fixed
// VAE beside a checkpoint); any other network that comes twice is an error.

#ifndef MODELS_MODEL_H
#define MODELS_MODEL_H

#include "models/files/tensors.h"

enum model_part { MODEL_VAE, MODEL_CLIP_L, MODEL_CLIP_H, MODEL_CLIP_G, MODEL_PART_COUNT };

// The shape of an AutoencoderKL, read from its tensors.
#define VAE_LEVELS_MAX 8u
struct vae_config {
    uint32_t levels;                          // resolutions; the factor is 2^(levels - 1)
    uint32_t block_channels[VAE_LEVELS_MAX];  // block_out_channels, the image's end first
    uint32_t blocks_per_level;  // layers_per_block of the encoder; the decoder has one more
    uint32_t latent_channels;   // 4 or 16, or what the tensors say
    uint32_t image_channels;    // 3
    uint32_t groups;            // norm_num_groups: 32, or the largest divisor the channels allow
    bool encoder, decoder;      // which halves are there
    bool quant_conv, post_quant_conv;  // which 1x1 convolutions are there
    bool mid_attention;                // the middle block has its attention
};

// The shape of a CLIP text encoder, read from its tensors.
struct clip_config {
    uint32_t layers, width, heads, mlp_width;  // heads = width / 64
    uint32_t vocabulary, tokens;  // rows of the two embeddings: 49408 and 77 (248 for Long-CLIP)
    uint32_t projection;          // columns of text_projection; 0 when there is none
    bool quick_gelu;              // CLIP-L; H and bigG use the erf GELU
};

// Which text encoders work together, and with which defaults (spec: text).
enum text_kind {
    TEXT_NONE,
    TEXT_SD1,      // CLIP-L: last layer, final norm, pooled not projected
    TEXT_SD2,      // OpenCLIP-H: penultimate layer, final norm
    TEXT_SDXL,     // CLIP-L and bigG: penultimate layers without norm, side by side; bigG's pooled,
                   // projected
    TEXT_REFINER,  // bigG alone
};

struct model_description {
    const char *kind;     // for people: "sdxl", "sd1.5", "sd2", "refiner"; "vae", "flux-vae" (16
                          // latent channels); without a VAE "clip-l + clip-g" and so on
    enum text_kind text;  // TEXT_NONE: offers no text
    bool has[MODEL_PART_COUNT];                 // which networks are complete
    uint64_t bytes[MODEL_PART_COUNT];           // of their tensors in the files
    struct vae_config vae;                      // with has[MODEL_VAE]
    struct clip_config clip[MODEL_PART_COUNT];  // with has[MODEL_CLIP_…]
};

struct model;

// Opens 1 to 16 files, finds and checks the networks in them: each set of tensors must be complete
// and its shapes must agree. Reads headers only. paths need not outlive the call.
//
// Ownership: on success the caller owns *out.
// Errors:    NOT_FOUND for a file that is missing; INVALID_ARGUMENT for a file that is no model,
//            for a network that is incomplete (names the first three missing tensors) or
//            inconsistent, and for encoders that no known kind has together; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status model_open(struct model **out, const char *const *paths, uint32_t paths_count,
                       const struct torch_reader *reader, struct error *error);

// Closes the model; tables that networks still share stay mapped. NULL is allowed.
// Thread:    any, once.
void model_close(struct model **self_p);

// What was found. Lives as long as the model.
// Thread:    any.
const struct model_description *model_describe(const struct model *self);

// The tensors of one network under canonical names; NULL when it is not there. Lives as long as the
// model unless the caller takes a count of it.
// Thread:    any.
struct tensor_table *model_tensors(const struct model *self, enum model_part part);

// The content id of one network: tensor_table_hash over its canonical table, so that the same
// weights have the same id whatever file they came from.
// Errors:    those of tensor_table_hash; NOT_FOUND when the network is not there.
// Thread:    any.
enum status model_hash(const struct model *self, enum model_part part, bool (*should_stop)(void *),
                       void *context, struct hash *out);

#endif  // MODELS_MODEL_H
