/* collectives.h - sums over the ranks of a tensor group.
 *
 * Every rank enqueues the same collectives in the same order, each on its own queue, each from its own driver thread.
 * The sum is taken in rank order, so it has the same bits on every rank and in every run. A rank that does not arrive
 * within the deadline (FIRESTEEL_COLLECTIVE_SECONDS) fails the collective on all others with a sentence that names the
 * rank; the group is broken from then on and every later collective of it fails at once.
 *
 * Opened and closed through fs_backend (comm_open, comm_close); used through fs_ops.all_reduce. */
#ifndef FS_BACKENDS_COLLECTIVES_H
#define FS_BACKENDS_COLLECTIVES_H

#include "backends/backend.h"

/* For hosts' memory: the rendezvous that the cpu backend uses. Blocking, called when the enqueued work runs, by one
 * thread a rank. x: this rank's [rows, cols] fp32, all ranks the same shape, none overlapping another's; on FS_OK it
 * holds the sum, after a failure it is as it was. */
fs_status fs_rendezvous_open(fs_comm **out, int size, double deadline_seconds);
void fs_rendezvous_close(fs_comm *c); /* NULL is fine; no rank is inside any more */
fs_status fs_rendezvous_sum(fs_comm *c, int rank, fs_view x);

#endif
