/* balance.c - layers -> stages: the costliest stage costs as little as can be, each fits its device, and of such cuts it
 * takes an even one.
 *
 *   least(s, j) = the least that the costliest of s stages over layers [0, j) can cost
 *               = min over i of max(least(s - 1, i), cost of [i, j) if it fits the room of stage s - 1)
 *
 * A thousand layers over 64 devices are 32 million steps, under 0.1 s; 80 layers over 8 are nothing. */
#include "base/alloc.h"
#include "placement/plan.h"

#include <math.h>

/* The best cut of layers [0, j): what its costliest stage costs, its squares (the smaller, the more even), and where
 * its last stage begins. */
typedef struct {
    double worst, squares;
    int from;
} cut;

/* One more stage, which ends before layer j: its beginning walks down from j, so its sums grow by a layer a turn. */
static cut extend(const cut *before, const fs_layer_load *layers, int j, size_t room, int earliest) {
    cut best = { .worst = INFINITY, .squares = INFINITY, .from = -1 };
    double cost = 0;
    size_t fixed = 0, space = 0;
    for (int i = j - 1; i >= earliest; i--) {
        cost += layers[i].cost;
        fixed += layers[i].fixed;
        if (layers[i].space > space) space = layers[i].space;
        if (fixed + space > room || cost > best.worst) break;
        const cut c = { fmax(cost, before[i].worst), before[i].squares + cost * cost, i };
        if (c.worst < best.worst || (c.worst == best.worst && c.squares < best.squares)) best = c;
    }
    return best;
}

fs_status fs_balance(int *cuts, int *found, const fs_layer_load *layers, int n, const size_t *rooms, int count) {
    cut *table; /* [count + 1][n + 1] */
    size_t row = (size_t)n + 1;
    FS_TRY(fs_alloc(&table, row * ((size_t)count + 1), sizeof *table));
    for (int j = 1; j <= n; j++) table[j].worst = INFINITY;
    for (int s = 0; s < count; s++)
        for (int j = 0; j <= n; j++)
            table[row * (size_t)(s + 1) + (size_t)j] =
                extend(table + row * (size_t)s, layers, j, rooms ? rooms[s] : SIZE_MAX, s);
    *found = isfinite(table[row * (size_t)count + (size_t)n].worst);
    cuts[count] = n;
    for (int s = count; *found && s > 0; s--) cuts[s - 1] = table[row * (size_t)s + (size_t)cuts[s]].from;
    fs_free(table);
    return FS_OK;
}
