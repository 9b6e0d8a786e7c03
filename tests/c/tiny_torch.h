/* tiny_torch.h - a small nn.Transformer, encoder and decoder, as a checkpoint of tiny_bert.h; tiny_close closes it. */
#ifndef TINY_TORCH_H
#define TINY_TORCH_H

#include "tiny_bert.h"

typedef struct {
    int encoders, decoders, D, H, F;
    int V; /* 0: features come in */
    int norm_first, causal_targets;
} tiny_torch_shape;

static inline void tiny_torch_norm(tiny_bert *t, const char *layer, const char *norm) {
    char name[80];
    snprintf(name, sizeof name, "%s%s.weight", layer, norm);
    tiny_tensor(t, name, 1, 1, t->shape.D);
    snprintf(name, sizeof name, "%s%s.bias", layer, norm);
    tiny_tensor(t, name, 1, 1, t->shape.D);
}

static inline void tiny_torch_attention(tiny_bert *t, const char *layer, const char *block) {
    const int D = t->shape.D;
    char name[80];
    snprintf(name, sizeof name, "%s%s.in_proj_weight", layer, block);
    tiny_tensor(t, name, 2, 3 * D, D);
    snprintf(name, sizeof name, "%s%s.in_proj_bias", layer, block);
    tiny_tensor(t, name, 1, 1, 3 * D);
    snprintf(name, sizeof name, "%s%s.out_proj", layer, block);
    tiny_linear(t, name, D, D);
}

static inline void tiny_torch_layers(tiny_bert *t, const char *side, int count, int decodes) {
    char layer[40], name[60];
    for (int l = 0; l < count; l++) {
        snprintf(layer, sizeof layer, "%s.layers.%d.", side, l);
        tiny_torch_attention(t, layer, "self_attn");
        if (decodes) tiny_torch_attention(t, layer, "multihead_attn");
        snprintf(name, sizeof name, "%slinear1", layer);
        tiny_linear(t, name, t->shape.F, t->shape.D);
        snprintf(name, sizeof name, "%slinear2", layer);
        tiny_linear(t, name, t->shape.D, t->shape.F);
        tiny_torch_norm(t, layer, "norm1");
        tiny_torch_norm(t, layer, "norm2");
        if (decodes) tiny_torch_norm(t, layer, "norm3");
    }
    tiny_torch_norm(t, side, ".norm");
}

static inline void tiny_torch_open(tiny_bert *t, const tiny_torch_shape *shape) {
    const tiny_shape files = { .D = shape->D, .H = shape->H, .F = shape->F, .V = shape->V, .prefix = "", .files = 1 };
    tiny_files(t, &files);
    tiny_text(t, "model_type", "torch_transformer");
    tiny_text(t, "part", "transformer");
    tiny_int(t, "num_encoder_layers", shape->encoders);
    tiny_int(t, "num_decoder_layers", shape->decoders);
    tiny_int(t, "d_model", shape->D);
    tiny_int(t, "nhead", shape->H);
    tiny_int(t, "dim_feedforward", shape->F);
    tiny_bool(t, "norm_first", shape->norm_first);
    tiny_bool(t, "causal_targets", shape->causal_targets);
    if (shape->V) {
        tiny_int(t, "vocab_size", shape->V);
        tiny_tensor(t, "embedding.weight", 2, shape->V, shape->D);
    }
    tiny_torch_layers(t, "encoder", shape->encoders, 0);
    tiny_torch_layers(t, "decoder", shape->decoders, 1);
}

#endif
