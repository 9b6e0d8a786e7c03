/* seeds.c - writes the first inputs of the fuzzers into folders: valid tiny BERTs of several shapes and PyTorch modules, and
 * sessions of workers with a manager. */
#include "format.h"
#include "packets.h"

#include "models/weights.h"
#include "tiny_bert.h"

#include <errno.h>
#include <sys/stat.h>

#ifndef __clang__
/* The fuzzers' objects count where they come by; here nobody asks. */
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) {}
#endif

/* The file and the table grow together; a name's width is that of the module, 4, unless said. */
static void put_tensor(fuzz_input *f, int64_t *bytes, const char *name, int64_t N, int64_t K) {
    fs_tensor *t = &f->tensors[f->c.tensor_count++];
    char *kept = f->text + f->text_used;
    f->text_used += (size_t)snprintf(kept, FUZZ_TEXT - f->text_used, "%s", name) + 1;
    *t = (fs_tensor){ .name = kept, .dtype = FS_F32, .rank = N ? 2 : 1, .offset = *bytes };
    t->shape[0] = N ? N : K;
    t->shape[1] = K;
    t->bytes = (N ? N : 1) * K * 4;
    *bytes += t->bytes;
}

static void put_linear(fuzz_input *f, int64_t *bytes, const char *at, const char *name, int64_t N, int64_t K) {
    char whole[100];
    snprintf(whole, sizeof whole, "%s%s%s", at, name, "weight");
    put_tensor(f, bytes, whole, N, K);
    snprintf(whole, sizeof whole, "%s%s%s", at, name, "bias");
    put_tensor(f, bytes, whole, 0, N ? N : K);
}

static void put_torch_layer(fuzz_input *f, int64_t *bytes, const char *at, int decodes) {
    put_linear(f, bytes, at, "self_attn.in_proj_", 12, 4);
    put_linear(f, bytes, at, "self_attn.out_proj.", 4, 4);
    if (decodes) put_linear(f, bytes, at, "multihead_attn.in_proj_", 12, 4);
    if (decodes) put_linear(f, bytes, at, "multihead_attn.out_proj.", 4, 4);
    put_linear(f, bytes, at, "linear1.", 6, 4);
    put_linear(f, bytes, at, "linear2.", 4, 6);
    put_linear(f, bytes, at, "norm1.", 0, 4);
    put_linear(f, bytes, at, "norm2.", 0, 4);
    if (decodes) put_linear(f, bytes, at, "norm3.", 0, 4);
}

static size_t write_torch(uint8_t *out, const char *part) {
    static fuzz_input f;
    int64_t bytes = 0;
    const int whole = !strcmp(part, "transformer"), decodes = !strcmp(part, "decoder");
    const fs_config_key keys[] = { { .key = "model_type", .kind = FS_TEXT, .text = "torch_transformer" },
                                   { .key = "part", .kind = FS_TEXT, .text = part },
                                   { .key = "d_model", .kind = FS_INT, .i = 4, .f = 4 },
                                   { .key = "nhead", .kind = FS_INT, .i = 2, .f = 2 },
                                   { .key = "num_encoder_layers", .kind = FS_INT, .i = 1, .f = 1 },
                                   { .key = "num_decoder_layers", .kind = FS_INT, .i = 1, .f = 1 },
                                   { .key = "dim_feedforward", .kind = FS_INT, .i = 6, .f = 6 },
                                   { .key = "norm_first", .kind = FS_BOOL, .i = whole },
                                   { .key = "vocab_size", .kind = whole ? FS_INT : FS_NULL, .i = 5, .f = 5 } };
    memset(&f, 0, sizeof f);
    f.c = (fs_checkpoint){ .keys = keys, .key_count = (int)(sizeof keys / sizeof *keys), .tensors = f.tensors };
    f.c.file_count = 1;
    if (whole) put_tensor(&f, &bytes, "embedding.weight", 5, 4);
    if (whole) put_torch_layer(&f, &bytes, "encoder.layers.0.", 0);
    if (whole) put_linear(&f, &bytes, "", "encoder.norm.", 0, 4);
    put_torch_layer(&f, &bytes, whole ? "decoder.layers.0." : decodes ? "m.layers.0." : "", whole || decodes);
    if (whole) put_linear(&f, &bytes, "", "decoder.norm.", 0, 4);
    return fuzz_write(out, &f.c, &bytes);
}

/* A classifier of an architecture, its tensors by its own tables. */
static size_t write_encoder(uint8_t *out, const fs_arch *arch) {
    static fuzz_input f;
    static fs_settings set;
    char classes[80];
    int64_t bytes = 0;
    const int distil = !strcmp(arch->model_type, "distilbert");
    snprintf(classes, sizeof classes, "[\"%.*sForSequenceClassification\"]", (int)strlen(arch->names[0]) - 1,
             arch->names[0]);
    const fs_config_key keys[] = {
        { .key = "model_type", .kind = FS_TEXT, .text = arch->model_type },
        { .key = "architectures", .kind = FS_JSON, .text = classes },
        { .key = distil ? "n_layers" : "num_hidden_layers", .kind = FS_INT, .i = 2, .f = 2 },
        { .key = distil ? "dim" : "hidden_size", .kind = FS_INT, .i = 4, .f = 4 },
        { .key = distil ? "n_heads" : "num_attention_heads", .kind = FS_INT, .i = 2, .f = 2 },
        { .key = distil ? "hidden_dim" : "intermediate_size", .kind = FS_INT, .i = 6, .f = 6 },
        { .key = "vocab_size", .kind = FS_INT, .i = 5, .f = 5 },
        { .key = "max_position_embeddings", .kind = FS_INT, .i = 6, .f = 6 },
        { .key =
              strcmp(arch->model_type, "albert") && strcmp(arch->model_type, "electra") ? "id2label" : "embedding_size",
          .kind = strcmp(arch->model_type, "albert") && strcmp(arch->model_type, "electra") ? FS_JSON : FS_INT,
          .i = 3,
          .f = 3,
          .text = "{}" },
    };
    memset(&f, 0, sizeof f);
    f.c = (fs_checkpoint){ .keys = keys, .key_count = (int)(sizeof keys / sizeof *keys), .tensors = f.tensors };
    f.c.file_count = 1;
    const fs_checkpoint config = { .name = "seed", .keys = keys, .key_count = f.c.key_count };
    if (fs_settings_read(&set, &config, "auto") != FS_OK) return fprintf(stderr, "%s\n", fs_error_text()), 0;
    for (int layer = FS_OUTSIDE; layer < set.L; layer++) {
        if (layer >= 0 && fs_layer_like(&set, layer) != layer) continue;
        for (const fs_weight_row *row = fs_weight_table(&set, layer); row->name; row++) {
            char name[FS_NAME_BYTES];
            if (!fs_weight_there(&set, row)) continue;
            fs_weight_name(name, &set, layer, row->name);
            put_tensor(&f, &bytes, name, row->kind == FS_VECTOR ? 0 : fs_dim_of(&set, row->N), fs_dim_of(&set, row->K));
        }
    }
    for (const fs_head_row *row = arch->head; row->weight; row++) {
        const int64_t N = row[1].weight ? set.D : 3;
        put_tensor(&f, &bytes, row->weight, N, set.D);
        put_tensor(&f, &bytes, row->bias, 0, N);
    }
    return fuzz_write(out, &f.c, &bytes);
}

static int write_seed(const char *folder, const char *name, const uint8_t *bytes, size_t size) {
    char path[512];
    snprintf(path, sizeof path, "%s/seed-%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) return perror(path), 1;
    return 0;
}

int main(int argc, char **argv) {
    static const char *const parts[] = { "encoder_layer", "decoder", "transformer" };
    static const tiny_shape shapes[] = {
        { .L = 1, .D = 8, .H = 2, .F = 12, .V = 10, .P = 4, .prefix = "", .files = 1 },
        { .L = 2, .D = 4, .H = 1, .F = 4, .V = 3, .P = 2, .prefix = "bert.", .files = 3, .dtype = FS_F16 },
        { .L = 1, .D = 9, .H = 3, .F = 5, .V = 70, .P = 3, .prefix = "", .files = 2, .dtype = FS_BF16, .gamma = 1 },
        { .L = 1, .D = 64, .H = 1, .F = 2, .V = 2, .P = 2, .prefix = "bert.", .files = 1 },
    };
    static uint8_t bytes[FUZZ_BYTES];
    char name[16];
    if (argc != 3) {
        fprintf(stderr, "usage: seeds CHECKPOINTS SESSIONS\n");
        return 2;
    }
    for (int i = 1; i < argc; i++)
        if (mkdir(argv[i], 0777) && errno != EEXIST) return perror(argv[i]), 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        tiny_bert t;
        tiny_open(&t, &shapes[i]);
        tiny_number(&t, "layer_norm_eps", 1e-5);
        tiny_bool(&t, "is_decoder", 0);
        tiny_text(&t, "hidden_act", i % 2 ? "relu" : "gelu");
        tiny_json(&t, "pruned_heads", "{}");
        tiny_null(&t, "type_vocab_size");
        size_t size = fuzz_write(bytes, &t.c, t.file_bytes);
        tiny_close(&t);
        snprintf(name, sizeof name, "%zu", i);
        if (write_seed(argv[1], name, bytes, size)) return 1;
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (write_seed(argv[1], parts[i], bytes, write_torch(bytes, parts[i]))) return 1;
    for (int i = 0; fs_archs[i]; i++) {
        size_t size = fs_archs[i]->head ? write_encoder(bytes, fs_archs[i]) : 0;
        if (fs_archs[i]->head && (!size || write_seed(argv[1], fs_archs[i]->model_type, bytes, size))) return 1;
    }
    if (write_seed(argv[2], "embed", bytes, put_session(bytes, FS_TASK_EMBED))) return 1;
    return write_seed(argv[2], "states", bytes, put_session(bytes, FS_TASK_HIDDEN_STATES));
}
