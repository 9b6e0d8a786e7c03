#include "manager/shared.h"

#include "base/alloc.h"

enum { SMALLEST_SEGMENT = 8 << 20, ALIGNED = 64 };

void fs_shared_open(fs_shared *p) {
    TAILQ_INIT(&p->segments);
    p->last_id = 0;
}

void fs_shared_drop(fs_shared *p, fs_shared_segment *s) {
    fs_piece *piece;
    TAILQ_REMOVE(&p->segments, s, link);
    while ((piece = TAILQ_FIRST(&s->pieces))) {
        TAILQ_REMOVE(&s->pieces, piece, link);
        fs_free(piece);
    }
    fs_segment_close(&s->memory);
    fs_free(s);
}

void fs_shared_close(fs_shared *p) {
    while (!TAILQ_EMPTY(&p->segments)) fs_shared_drop(p, TAILQ_FIRST(&p->segments));
}

static fs_status grow(fs_shared *p, size_t bytes) {
    fs_status st = FS_OK;
    fs_shared_segment *s = NULL;
    fs_piece *all = NULL;
    FS_GO(fs_alloc(&s, 1, sizeof *s));
    FS_GO(fs_alloc(&all, 1, sizeof *all));
    FS_GO(fs_segment_make(&s->memory, bytes < SMALLEST_SEGMENT ? SMALLEST_SEGMENT : bytes));
    s->id = ++p->last_id;
    all->bytes = s->memory.bytes;
    TAILQ_INIT(&s->pieces);
    TAILQ_INSERT_TAIL(&s->pieces, all, link);
    TAILQ_INSERT_HEAD(&p->segments, s, link);
    return FS_OK;
done:
    fs_free(all);
    fs_free(s);
    return st;
}

/* NULL: no room in this one. *st: no memory to say so. */
static char *take_from(fs_shared_segment *s, size_t bytes, fs_status *st) {
    fs_piece *piece, *rest;
    TAILQ_FOREACH(piece, &s->pieces, link) if (!piece->used && piece->bytes >= bytes) break;
    if (!piece) return NULL;
    if (piece->bytes > bytes) {
        *st = fs_alloc(&rest, 1, sizeof *rest);
        if (*st != FS_OK) return NULL;
        rest->at = piece->at + bytes, rest->bytes = piece->bytes - bytes;
        piece->bytes = bytes;
        TAILQ_INSERT_AFTER(&s->pieces, piece, rest, link);
    }
    piece->used = 1;
    return s->memory.at + piece->at;
}

fs_status fs_shared_take(fs_shared *p, size_t bytes, void **out) {
    fs_status st = FS_OK;
    fs_shared_segment *s;
    *out = NULL;
    bytes = bytes ? (bytes + ALIGNED - 1) / ALIGNED * ALIGNED : ALIGNED;
    TAILQ_FOREACH(s, &p->segments, link)
    if (!s->abandoned && ((*out = take_from(s, bytes, &st)) || st != FS_OK)) return st;
    FS_TRY(grow(p, bytes));
    *out = take_from(TAILQ_FIRST(&p->segments), bytes, &st);
    return st;
}

fs_shared_segment *fs_shared_find(fs_shared *p, const void *at, size_t bytes) {
    fs_shared_segment *s;
    fs_piece *piece;
    TAILQ_FOREACH(s, &p->segments, link) {
        const char *first = s->memory.at;
        if ((const char *)at < first || (const char *)at >= first + s->memory.bytes) continue;
        const size_t place = (size_t)((const char *)at - first);
        TAILQ_FOREACH(piece, &s->pieces, link)
        if (piece->used && place >= piece->at && place < piece->at + piece->bytes)
            return bytes <= piece->at + piece->bytes - place ? s : NULL;
    }
    return NULL;
}

int fs_shared_is_empty(const fs_shared_segment *s) {
    const fs_piece *first = TAILQ_FIRST(&s->pieces);
    return !first->used && !TAILQ_NEXT(first, link);
}

void fs_shared_abandon(fs_shared *p) {
    fs_shared_segment *s, *next;
    for (s = TAILQ_FIRST(&p->segments); s; s = next) {
        next = TAILQ_NEXT(s, link);
        s->abandoned = 1;
        if (fs_shared_is_empty(s)) fs_shared_drop(p, s);
    }
}

void fs_shared_unannounce(fs_shared *p) {
    fs_shared_segment *s;
    TAILQ_FOREACH(s, &p->segments, link) s->announced = 0;
}

static void join_next(fs_shared_segment *s, fs_piece *piece) {
    fs_piece *next = piece ? TAILQ_NEXT(piece, link) : NULL;
    if (!next || piece->used || next->used) return;
    piece->bytes += next->bytes;
    TAILQ_REMOVE(&s->pieces, next, link);
    fs_free(next);
}

void fs_shared_give(fs_shared *p, void *at, fs_shared_segment **empty) {
    fs_piece *piece;
    fs_shared_segment *s = fs_shared_find(p, at, 0);
    *empty = NULL;
    if (!s) return;
    TAILQ_FOREACH(piece, &s->pieces, link) if (s->memory.at + piece->at == (char *)at) break;
    if (!piece) return;
    piece->used = 0;
    join_next(s, piece);
    join_next(s, TAILQ_PREV(piece, fs_piece_list, link));
    if (fs_shared_is_empty(s)) *empty = s;
}
