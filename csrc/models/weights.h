/* weights.h - the weight tables of an architecture against the tensor names of a checkpoint.
 *
 * A tensor's name = prefix + layer prefix with the layer's number + name of the table row:
 *   "bert." + "encoder.layer.3." + "output.dense.weight"
 * The prefix is whatever is found there: "", "bert.", "module.bert.", "0.auto_model." ...
 * Shared by the check (weights_check.c) and the loader (load.c); nothing here owns anything. */
#ifndef FS_MODELS_WEIGHTS_H
#define FS_MODELS_WEIGHTS_H

#include "models/arch.h"

#define FS_NAME_BYTES 256
#define FS_OUTSIDE    (-1) /* the layer number of weights outside the layers */

/* The table of a layer, or of the weights outside the layers. */
const fs_weight_row *fs_weight_table(const fs_settings *set, int layer);
/* Whether a model with these settings has the weight. */
int fs_weight_there(const fs_settings *set, const fs_weight_row *row);
void fs_weight_name(char out[FS_NAME_BYTES], const fs_settings *set, int layer, const char *name);
/* Whether a row is called so; whether a layer of the kind has a weight of this whole name. */
int fs_table_names(const fs_weight_row *table, const char *name);
int fs_kind_names(const fs_layer_kind *kind, const char *name);
/* The tensor of a table row, under its own or its other name, and with FS_ABOVE behind a part of the prefix; NULL when
 * the checkpoint has none. */
const fs_tensor *fs_weight_tensor(const fs_tensor_names *names, const fs_settings *set, int layer,
                                  const fs_weight_row *row);
/* set->prefix = what stands before the most weights of layers, and ends with a "."; nothing where that is nowhere. */
void fs_weight_find_prefix(fs_settings *set, const fs_checkpoint *c);

#endif
