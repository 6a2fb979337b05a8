/* What a kernel executes and which cache serves it: a plugin of qemu-user's code generator.
 *
 * Counts how often each translated block is executed, and sends every access to memory through
 * three set-associative, write-allocating caches with least-recently-used replacement. Blocks and
 * accesses of [from, to) are counted; what else the program does only moves the caches.
 *
 * Arguments: out=FILE from=ADDRESS to=ADDRESS line=BYTES l1=BYTES/WAYS l2=BYTES/WAYS l3=BYTES/WAYS
 * (0/1: no such cache). Written at exit: one text line for each block ("block ADDRESS INSTRUCTIONS
 * EXECUTIONS" and, for each block that was executed next, "ADDRESS:INSTRUCTIONS:TIMES") and one for
 * each kind of access ("LOADS|STORES STREAMED LEVEL LINES", level 0 is L1 and 3 memory).
 *
 * A miss is "streamed" where it goes on from a line that missed before, up or down by one or two
 * lines: what the prefetchers of all the cores concerned recognise.
 *
 * The few functions of qemu's plugin interface and of the C library that are used are declared
 * here, so that neither's headers need be there; both are in the process that loads this.
 */

typedef unsigned long long u64;
typedef unsigned int u32;
typedef u64 plugin_id;
struct tb;
struct insn;

extern u64 qemu_plugin_tb_vaddr(const struct tb *);
extern __SIZE_TYPE__ qemu_plugin_tb_n_insns(const struct tb *);
extern struct insn *qemu_plugin_tb_get_insn(const struct tb *, __SIZE_TYPE__);
extern u64 qemu_plugin_insn_vaddr(const struct insn *);
extern u32 qemu_plugin_mem_size_shift(u32 info);
extern _Bool qemu_plugin_mem_is_store(u32 info);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct tb *, void (*)(u32, void *), int, void *);
extern void qemu_plugin_register_vcpu_mem_cb(
    struct insn *, void (*)(u32, u32, u64, void *), int, int, void *);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

extern void *calloc(__SIZE_TYPE__, __SIZE_TYPE__);
extern void *fopen(const char *, const char *);
extern int fclose(void *);
extern int fprintf(void *, const char *, ...);
extern int strncmp(const char *, const char *, __SIZE_TYPE__);
extern u64 strtoull(const char *, char **, int);

/* Qemu refuses a plugin that was made for another version of the interface. What is used here is
 * the same in all of them, so the number is given by who compiles this. */
__attribute__((visibility("default"))) int qemu_plugin_version = API_VERSION;

enum { NO_REGISTERS = 0, READ_AND_WRITE = 3, LEVELS = 3, STREAMS = 16 };

struct edge {
    struct block *to;
    u64 taken;
    struct edge *next;
};

struct block {
    u64 address, instructions, executions;
    struct edge *edges; /* to the blocks that were executed next */
    struct block *next;
};

struct cache {
    u64 sets, ways;
    u64 *lines; /* [sets][ways], the most recently used first; a line's number plus one */
};

static struct block *blocks[4096], before_all, *last_block = &before_all;
static struct cache caches[LEVELS];
static u64 served[2][2][LEVELS + 1]; /* [is store][streamed] */
static u64 streams[STREAMS], oldest, last_line = ~0ULL;
static u64 from, to, line_shift = 6;
static const char *out;

/* Whether the cache holds the line; it does afterwards. */
static int touch(struct cache *cache, u64 line)
{
    u64 *set = cache->lines + line % cache->sets * cache->ways, tag = line + 1, way = 0;
    while (way < cache->ways - 1 && set[way] != tag)
        way++;
    int hit = set[way] == tag;
    for (; way > 0; way--)
        set[way] = set[way - 1];
    set[0] = tag;
    return hit;
}

static int streamed(u64 line)
{
    for (u64 i = 0; i < STREAMS; i++)
        if (line + 2 - streams[i] <= 4) {
            streams[i] = line;
            return 1;
        }
    streams[oldest++ % STREAMS] = line;
    return 0;
}

static void access_line(u64 line, int store, int counted)
{
    int level = 0;
    while (level < LEVELS && !(caches[level].sets && touch(&caches[level], line)))
        level++;
    if (level == 0) {
        served[store][0][0] += counted;
        return;
    }
    int in_stream = streamed(line);
    served[store][in_stream][level] += counted;
}

static void on_access(u32 cpu, u32 info, u64 address, void *counted)
{
    (void)cpu;
    u64 first = address >> line_shift;
    u64 last = (address + (1ULL << qemu_plugin_mem_size_shift(info)) - 1) >> line_shift;
    if (first == last_line && last == first)
        return;
    for (u64 line = first; line <= last; line++)
        access_line(line, qemu_plugin_mem_is_store(info), counted != 0);
    last_line = last;
}

static void on_execution(u32 cpu, void *data)
{
    (void)cpu;
    struct block *block = data;
    struct edge *edge;
    block->executions++;
    for (edge = last_block->edges; edge && edge->to != block; edge = edge->next)
        ;
    if (!edge) {
        edge = calloc(1, sizeof *edge);
        edge->to = block;
        edge->next = last_block->edges;
        last_block->edges = edge;
    }
    edge->taken++;
    last_block = block;
}

static struct block *block_of(u64 address, u64 instructions)
{
    struct block **place = &blocks[(address ^ address >> 12) % 4096], *block;
    for (block = *place; block; block = block->next)
        if (block->address == address && block->instructions == instructions)
            return block;
    block = calloc(1, sizeof *block);
    block->address = address;
    block->instructions = instructions;
    block->next = *place;
    return *place = block;
}

static void on_translation(plugin_id id, struct tb *tb)
{
    (void)id;
    u64 address = qemu_plugin_tb_vaddr(tb), instructions = qemu_plugin_tb_n_insns(tb);
    int counted = from <= address && address < to;
    if (counted)
        qemu_plugin_register_vcpu_tb_exec_cb(
            tb, on_execution, NO_REGISTERS, block_of(address, instructions));
    if (caches[0].sets)
        for (u64 i = 0; i < instructions; i++)
            qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_access,
                NO_REGISTERS, READ_AND_WRITE, counted ? &from : 0);
}

static void at_exit(plugin_id id, void *unused)
{
    (void)id;
    (void)unused;
    void *file = fopen(out, "w");
    if (!file)
        return;
    for (u32 i = 0; i < 4096; i++)
        for (struct block *block = blocks[i]; block; block = block->next) {
            fprintf(file, "block %llu %llu %llu", block->address, block->instructions,
                block->executions);
            for (struct edge *edge = block->edges; edge; edge = edge->next)
                fprintf(file, " %llu:%llu:%llu", edge->to->address, edge->to->instructions,
                    edge->taken);
            fprintf(file, "\n");
        }
    for (int store = 0; store < 2; store++)
        for (int in_stream = 0; in_stream < 2; in_stream++)
            for (int level = 0; level <= LEVELS; level++)
                fprintf(file, "%s %d %d %llu\n", store ? "stores" : "loads", in_stream, level,
                    served[store][in_stream][level]);
    fprintf(file, "end\n");
    fclose(file);
}

static const char *value_of(const char *argument, const char *name)
{
    __SIZE_TYPE__ length = 0;
    while (name[length])
        length++;
    return strncmp(argument, name, length) ? 0 : argument + length;
}

__attribute__((visibility("default"))) int qemu_plugin_install(
    plugin_id id, const void *info, int count, char **arguments)
{
    (void)info;
    u64 bytes[LEVELS] = {0};
    for (int i = 0; i < count; i++) {
        const char *value;
        char *rest;
        if ((value = value_of(arguments[i], "out=")))
            out = value;
        else if ((value = value_of(arguments[i], "from=")))
            from = strtoull(value, 0, 0);
        else if ((value = value_of(arguments[i], "to=")))
            to = strtoull(value, 0, 0);
        else if ((value = value_of(arguments[i], "line=")))
            for (line_shift = 0; 1ULL << line_shift < strtoull(value, 0, 0);)
                line_shift++;
        else if (arguments[i][0] == 'l' && arguments[i][1] >= '1' && arguments[i][1] <= '3') {
            int level = arguments[i][1] - '1';
            bytes[level] = strtoull(arguments[i] + 3, &rest, 0);
            caches[level].ways = strtoull(rest + 1, 0, 0);
        } else
            return 1;
    }
    for (int level = 0; level < LEVELS; level++) {
        struct cache *cache = &caches[level];
        if (!cache->ways || !(cache->sets = bytes[level] / cache->ways >> line_shift))
            continue;
        cache->lines = calloc(cache->sets * cache->ways, sizeof(u64));
    }
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, at_exit, 0);
    return 0;
}
