/* Half a pair as a pair whose second plane is empty: the same levels, for kernels that expand. */
#ifndef EDB_HALF_H
#define EDB_HALF_H

#include <string.h>

#include "internal.h"

/* half: EDB_HALF_BYTES; pair: EDB_BLOCK_BYTES, of which the last 64 must be zero already. */
static EDB_INLINE void edb_widen_half(const uint8_t *half, uint8_t *pair) {
    for (int two = 0; two < EDB_QUADS / 2; two++) {
        for (int row = 0; row < EDB_TILE; row++) {
            uint8_t bits = half[EDB_TILE * two + row];
            pair[EDB_TILE * 2 * two + row] = bits & 15;
            pair[EDB_TILE * (2 * two + 1) + row] = bits >> 4;
        }
    }
    memcpy(pair + 1024, half + 512, EDB_TILE);
}

#endif
