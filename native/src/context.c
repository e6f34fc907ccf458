/* Contexts, the text of a status, and which header this is. */
#include <stdlib.h>

#include "internal.h"

#ifndef EDB_HEADER_CRC /* which ../build.py tells */
#define EDB_HEADER_CRC 0
#endif

uint32_t edb_header_crc(void) { return EDB_HEADER_CRC; }

const char *edb_status_text(edb_status status) {
    switch (status) {
    case EDB_OK: return "ok";
    case EDB_ERR_NULL: return "a required pointer is NULL";
    case EDB_ERR_ALIGN: return "memory is not aligned (weights: 64 bytes, floats: 4 bytes)";
    case EDB_ERR_SHAPE: return "a size is zero, negative, too large, or sizes disagree";
    case EDB_ERR_KIND: return "unknown kind of matrix or type of cache";
    case EDB_ERR_RANGE: return "a token id or a position is out of range";
    case EDB_ERR_SCRATCH: return "scratch memory is too small";
    case EDB_ERR_ISA: return "the instruction set is unknown or this CPU does not have it";
    case EDB_ERR_MEMORY: return "out of memory";
    case EDB_ERR_KERNEL: return "the instruction set has no kernel of this name";
    case EDB_ERR_THREAD: return "the operating system refused to start a thread";
    default: return "unknown status";
    }
}

edb_status edb_context_create(const char *isa, const char *kernel, edb_pool *pool,
                              edb_context **context) {
    if (context == NULL) return EDB_ERR_NULL;
    *context = NULL;
    const edb_isa *found = edb_isa_find(isa);
    if (found == NULL) return EDB_ERR_ISA;
    const edb_pair_kernel *pairs = edb_pair_kernel_find(found->kernels, kernel);
    if (pairs == NULL) return EDB_ERR_KERNEL;
    edb_context *created = malloc(sizeof *created);
    if (created == NULL) return EDB_ERR_MEMORY;
    created->isa = found;
    created->pairs = pairs;
    created->pool = pool;
    edb_fetch_here = edb_cpu_fetch();
    *context = created;
    return EDB_OK;
}

void edb_context_destroy(edb_context *context) { free(context); }

const char *edb_context_isa(const edb_context *context) {
    return context != NULL ? context->isa->name : NULL;
}

const char *edb_context_kernel(const edb_context *context) {
    return context != NULL ? context->pairs->name : NULL;
}
