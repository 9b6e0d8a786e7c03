#include "manager/store.h"

#include "base/alloc.h"
#include "base/hash.h"

#include <string.h>
#include <sys/queue.h>

enum { FEWEST_BUCKETS = 1 << 12, BUCKET_FOR_BYTES = 2048, LARGEST_SHARE = 16 };

/* Behind it: source, targets, floats; each at a multiple of 4. */
typedef struct entry {
    TAILQ_ENTRY(entry) used; /* by last use */
    struct entry *next;      /* of the bucket */
    uint64_t hash, model;
    fs_task task;
    size_t source_bytes, target_bytes, bytes;
    int64_t floats;
    char content[];
} entry;

struct fs_store {
    TAILQ_HEAD(, entry) entries; /* used longest ago first */
    entry **buckets;
    size_t bucket_count, bytes, most_bytes;
};

fs_status fs_store_open(fs_store **out, size_t most_bytes) {
    fs_status st = FS_OK;
    fs_store *s = NULL;
    *out = NULL;
    FS_GO(fs_alloc(&s, 1, sizeof *s));
    s->most_bytes = most_bytes;
    TAILQ_INIT(&s->entries);
    for (s->bucket_count = FEWEST_BUCKETS; s->bucket_count * BUCKET_FOR_BYTES < most_bytes;) s->bucket_count *= 2;
    FS_GO(fs_alloc(&s->buckets, s->bucket_count, sizeof *s->buckets));
    *out = s;
    return FS_OK;
done:
    fs_free(s);
    return st;
}

void fs_store_close(fs_store *s) {
    if (!s) return;
    for (entry *e = TAILQ_FIRST(&s->entries), *next; e; e = next) {
        next = TAILQ_NEXT(e, used);
        fs_free(e);
    }
    fs_free(s->buckets);
    fs_free(s);
}

static uint64_t hash_of(const fs_store_key *k) {
    uint64_t h = fs_hash(k->task, sizeof *k->task, k->model);
    return fs_hash(k->targets, k->target_bytes, fs_hash(k->source, k->source_bytes, h));
}

static int equal(const entry *e, const fs_store_key *k, uint64_t hash) {
    return e->hash == hash && e->model == k->model && !memcmp(&e->task, k->task, sizeof e->task) &&
           e->source_bytes == k->source_bytes && e->target_bytes == k->target_bytes &&
           !memcmp(e->content, k->source, k->source_bytes) &&
           !memcmp(e->content + e->source_bytes, k->targets, k->target_bytes);
}

static entry **bucket_of(fs_store *s, uint64_t hash) { return &s->buckets[hash & (s->bucket_count - 1)]; }

static entry *find(fs_store *s, const fs_store_key *key, uint64_t hash) {
    entry *e = *bucket_of(s, hash);
    while (e && !equal(e, key, hash)) e = e->next;
    return e;
}

const float *fs_store_find(fs_store *s, const fs_store_key *key, int64_t *floats) {
    if (TAILQ_EMPTY(&s->entries)) return NULL;
    entry *e = find(s, key, hash_of(key));
    if (!e) return NULL;
    TAILQ_REMOVE(&s->entries, e, used);
    TAILQ_INSERT_TAIL(&s->entries, e, used);
    *floats = e->floats;
    return (const float *)(const void *)(e->content + e->source_bytes + e->target_bytes);
}

static void forget(fs_store *s, entry *e) {
    entry **at = bucket_of(s, e->hash);
    while (*at != e) at = &(*at)->next;
    *at = e->next;
    TAILQ_REMOVE(&s->entries, e, used);
    s->bytes -= e->bytes;
    fs_free(e);
}

void fs_store_put(fs_store *s, const fs_store_key *key, const float *result, int64_t floats) {
    entry *e;
    const uint64_t hash = hash_of(key);
    const size_t bytes = sizeof *e + key->source_bytes + key->target_bytes + (size_t)floats * sizeof *result;
    if (bytes > s->most_bytes / LARGEST_SHARE || find(s, key, hash)) return;
    while (s->bytes + bytes > s->most_bytes) forget(s, TAILQ_FIRST(&s->entries));
    if (fs_alloc(&e, 1, bytes) != FS_OK) return;
    e->hash = hash, e->model = key->model, e->task = *key->task, e->bytes = bytes, e->floats = floats;
    e->source_bytes = key->source_bytes, e->target_bytes = key->target_bytes;
    memcpy(e->content, key->source, key->source_bytes);
    if (key->target_bytes) memcpy(e->content + key->source_bytes, key->targets, key->target_bytes);
    memcpy(e->content + key->source_bytes + key->target_bytes, result, (size_t)floats * sizeof *result);
    e->next = *bucket_of(s, hash);
    *bucket_of(s, hash) = e;
    TAILQ_INSERT_TAIL(&s->entries, e, used);
    s->bytes += bytes;
}

size_t fs_store_bytes(const fs_store *s) { return s->bytes; }
