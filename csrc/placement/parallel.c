#include "placement/parallel.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define WRITE                                                                                                          \
    "write \"auto\", \"replicate\", \"split\", \"tensor\", \"stream\" or a combination such as "                       \
    "\"replicate=2,split=2\""

enum { REPLICATE, SPLIT, TENSOR, STREAM, WORDS };
static const char *const words[WORDS] = { "replicate", "split", "tensor", "stream" };

enum { UNNAMED = 0, FOLLOWS = -1 }; /* instead of a number */

/* "split=2" of `length` bytes into the number of its word. */
static fs_status read_word(int numbers[WORDS], const char *all, const char *at, size_t length) {
    const char *equals = memchr(at, '=', length), *end = at + length;
    size_t name = equals ? (size_t)(equals - at) : length;
    int word = 0, number = FOLLOWS;
    while (word < WORDS && (strlen(words[word]) != name || memcmp(words[word], at, name))) word++;
    if (word == WORDS)
        return fs_fail(FS_CONFIG, "parallel='%.60s': '%.*s' is no way to place a model; " WRITE, all,
                       name < 40 ? (int)name : 40, at);
    if (word == STREAM && equals)
        return fs_fail(FS_CONFIG,
                       "parallel='%.60s': stream takes no number, the layers held follow from the memory; write "
                       "\"stream\", and max_memory bounds it",
                       all);
    if (numbers[word] != UNNAMED)
        return fs_fail(FS_CONFIG, "parallel='%.60s' names %s twice; name each once", all, words[word]);
    if (equals) {
        number = 0;
        for (const char *digit = equals + 1; digit < end; digit++) {
            if (*digit < '0' || *digit > '9' || number > 9999) number = INT_MIN;
            else number = number * 10 + (*digit - '0');
            if (number < 0) break;
        }
        if (number < 1)
            return fs_fail(FS_CONFIG, "parallel='%.60s': %s takes a whole number from 1 to 9999; " WRITE, all,
                           words[word]);
    }
    numbers[word] = number;
    return FS_OK;
}

/* What `all` could have said instead, for n devices. */
static fs_status misfit(const char *all, const int numbers[WORDS], long long product, int n) {
    fs_parallel other = { .replicate = 1, .split = 1, .tensor = numbers[TENSOR] > 0 ? numbers[TENSOR] : 1 };
    char text[FS_PARALLEL_TEXT];
    if (n % other.tensor) other.tensor = 1;
    if (numbers[SPLIT] > 0 && n / other.tensor % numbers[SPLIT] == 0) other.split = numbers[SPLIT];
    other.replicate = n / other.tensor / other.split;
    return fs_fail(FS_CONFIG,
                   "parallel='%.60s' places the model on %lld device%s and devices names %d; the numbers multiply to "
                   "%d, as in \"%s\"",
                   all, product, product == 1 ? "" : "s", n, n, fs_parallel_text(&other, text));
}

fs_status fs_parallel_read(fs_parallel *out, const char *text, int devices) {
    int numbers[WORDS] = { UNNAMED }, follower = -1;
    *out = (fs_parallel){ .replicate = 1, .split = 1, .tensor = 1 };
    if (!text || !*text || !strcmp(text, "auto")) {
        out->is_auto = 1;
        return FS_OK;
    }
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        FS_TRY(read_word(numbers, text, at, length));
        at += length;
        if (!*at) break;
    }
    out->stream = numbers[STREAM] != UNNAMED;
    if (out->stream && numbers[TENSOR] != UNNAMED)
        return fs_fail(FS_CONFIG,
                       "parallel='%.60s': a tensor group holds all of its layers, so none can be streamed; write "
                       "\"split,stream\"",
                       text);
    if (out->stream && numbers[REPLICATE] == UNNAMED && numbers[SPLIT] == UNNAMED) numbers[SPLIT] = devices;
    long long product = 1;
    for (int w = 0; w < STREAM; w++) {
        if (numbers[w] > 0) product *= numbers[w];
        if (numbers[w] != FOLLOWS) continue;
        if (follower >= 0)
            return fs_fail(FS_CONFIG,
                           "parallel='%.60s' gives neither %s nor %s a number; one of them can follow from the number "
                           "of devices, as in \"%s=2,%s\"",
                           text, words[follower], words[w], words[follower], words[w]);
        follower = w;
    }
    if (devices == 0) return FS_OK;
    if (follower >= 0 && devices % product == 0) numbers[follower] = devices / (int)product;
    else if (follower >= 0 || product != devices) return misfit(text, numbers, product, devices);
    if (numbers[REPLICATE] > 0) out->replicate = numbers[REPLICATE];
    if (numbers[SPLIT] > 0) out->split = numbers[SPLIT];
    if (numbers[TENSOR] > 0) out->tensor = numbers[TENSOR];
    return FS_OK;
}

const char *fs_parallel_text(const fs_parallel *p, char out[FS_PARALLEL_TEXT]) {
    const int numbers[] = { p->replicate, p->split, p->tensor };
    int named = 0, used = 0;
    for (int w = 0; w < STREAM; w++) named += numbers[w] > 1;
    if (named == 0) snprintf(out, FS_PARALLEL_TEXT, "%s", words[p->stream ? STREAM : REPLICATE]);
    for (int w = 0; w < STREAM; w++) {
        size_t room = (size_t)(FS_PARALLEL_TEXT - used);
        if (numbers[w] > 1 && named == 1 && !p->stream) snprintf(out, room, "%s", words[w]);
        else if (numbers[w] > 1) used += snprintf(out + used, room, "%s%s=%d", used ? "," : "", words[w], numbers[w]);
    }
    if (p->stream && named > 0) snprintf(out + used, (size_t)(FS_PARALLEL_TEXT - used), ",%s", words[STREAM]);
    return out;
}
