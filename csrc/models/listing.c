#include "models/listing.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* " and 2147483647 more" must always fit behind the items. */
#define TAIL 24

static size_t room_of(const fs_listing *l) { return l->room && l->room < sizeof l->text ? l->room : sizeof l->text; }

void fs_listing_add(fs_listing *l, const char *format, ...) {
    char item[200];
    va_list args;
    va_start(args, format);
    int bytes = vsnprintf(item, sizeof item, format, args);
    va_end(args);
    l->count++;
    /* Once one item was left out all later ones are, so that the list names the first ones. */
    if (bytes < 0 || l->shown == FS_LISTING_ITEMS || l->shown + 1 != l->count) return;
    size_t length = strlen(item), separator = l->shown ? 2 : 0;
    if (l->used + separator + length + TAIL >= room_of(l) && l->shown) return;
    if (length + TAIL >= room_of(l)) length = room_of(l) > TAIL ? room_of(l) - TAIL - 1 : 0;
    memcpy(l->text + l->used, ", ", separator);
    memcpy(l->text + l->used + separator, item, length);
    l->used += separator + length;
    l->text[l->used] = 0;
    l->shown++;
}

const char *fs_listing_end(fs_listing *l) {
    if (l->count > l->shown) snprintf(l->text + l->used, sizeof l->text - l->used, " and %d more", l->count - l->shown);
    return l->text;
}
