/* listing.h - "a, b, c and 9 more": the middle of a sentence that must name everything and stay readable.
 *
 * Names come from foreign files and may be long, so each item and the whole are cut to a size. */
#ifndef FS_MODELS_LISTING_H
#define FS_MODELS_LISTING_H

#include <stddef.h>

#define FS_LISTING_ITEMS 12

typedef struct {
    char text[640];
    size_t room; /* of text, to share a sentence between several lists; 0: all of it */
    size_t used;
    int count, shown;
} fs_listing;

void fs_listing_add(fs_listing *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Appends how many were left out, and returns the text. */
const char *fs_listing_end(fs_listing *l);

#endif
