/* seeds.c - writes the first inputs of the fuzzer into a folder: valid tiny BERTs of several shapes. */
#include "format.h"

#include "tiny_bert.h"

#include <errno.h>
#include <sys/stat.h>

int main(int argc, char **argv) {
    static const tiny_shape shapes[] = {
        { .L = 1, .D = 8, .H = 2, .F = 12, .V = 10, .P = 4, .prefix = "", .files = 1 },
        { .L = 2, .D = 4, .H = 1, .F = 4, .V = 3, .P = 2, .prefix = "bert.", .files = 3, .dtype = FS_F16 },
        { .L = 1, .D = 9, .H = 3, .F = 5, .V = 70, .P = 3, .prefix = "", .files = 2, .dtype = FS_BF16, .gamma = 1 },
        { .L = 1, .D = 64, .H = 1, .F = 2, .V = 2, .P = 2, .prefix = "bert.", .files = 1 },
    };
    static uint8_t bytes[FUZZ_BYTES];
    char path[512];
    if (argc != 2) {
        fprintf(stderr, "usage: seeds FOLDER\n");
        return 2;
    }
    if (mkdir(argv[1], 0777) && errno != EEXIST) return perror(argv[1]), 1;
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
        snprintf(path, sizeof path, "%s/seed-%zu", argv[1], i);
        FILE *file = fopen(path, "wb");
        if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) return perror(path), 1;
    }
    return 0;
}
