/* Memory on a boundary: Windows has no aligned_alloc, and its free must not be given such memory. */
#ifndef EDB_ALIGNED_H
#define EDB_ALIGNED_H

#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#endif

/* bytes: a multiple of 64. NULL if there is none left. */
static inline void *edb_allocate_lines(size_t bytes) {
#if defined(_WIN32)
    return _aligned_malloc(bytes, 64);
#else
    return aligned_alloc(64, bytes);
#endif
}

static inline void edb_free_lines(void *p) {
#if defined(_WIN32)
    _aligned_free(p);
#else
    free(p);
#endif
}

#endif
