// lora_wants.c - from a reference to a content.
//
//     reference --names--> file --hash--> content, resident: done
//         |                 |  dirty              |  not resident, and it has to be: load the file
//         |                 v                     v
//         |               scan, once            load, once for all who want that file
//         +-- unknown --> scan, once, then NOT_FOUND
//
// A want waits for at most one scan, which begins after the want came: a file that was there before
// is found, however lately it was written, and nobody can keep anybody scanning. inotify tells
// which names are not to be believed before that.

#include "actors/lora_state.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/text.h"

#define RESCAN_AFTER_MS 100u        // of a change
#define RESCAN_UNWATCHED_MS 30000u  // where changes are not told

enum progress { DONE, WAITS, FAILED };

// ---- what changed

static void on_change(struct lora_store *self, const struct inotify_event *event)
{
    if ((event->mask & IN_IGNORED) != 0) return;
    bool named = event->len > 0 && (event->mask & (IN_ISDIR | IN_Q_OVERFLOW)) == 0;
    if (named && !lora_scan_wants(event->name)) return;
    if (named) lora_files_changed(self->files, event->wd, event->name, self->scans_ordered + 1);
    if (self->scan_due <= self->scans_ordered) {
        self->scan_due = self->scans_ordered + 1;
        loop_timer_restart(self->rescan, RESCAN_AFTER_MS);
    }
}

void lora_want_watch(struct lora_store *self)
{
    if (self->inotify < 0) return;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        _Alignas(struct inotify_event) char buffer[8192];
        ssize_t got = read(self->inotify, buffer, sizeof buffer);
        if (got <= 0) return;
        for (ssize_t at = 0; at < got;) {
            const struct inotify_event *event = (const void *)(buffer + at);
            on_change(self, event);
            at += (ssize_t)(sizeof *event + event->len);
        }
    }
}

// ---- scans

static void order_scan(struct lora_store *self)
{
    struct lora_flight *flight = NULL;
    struct lora_order order = {
        .kind = LORA_SCAN, .has_lane = true, .lane = 0, .descriptor = -1, .second = -1};
    struct error error = {0};
    if (lora_store_order(self, &order, NULL, &flight, &error) != STATUS_OK) {
        loop_timer_restart(self->rescan, RESCAN_AFTER_MS);
        return;
    }
    self->scans_ordered += 1;
    flight->scan = self->scans_ordered;
}

uint64_t lora_want_scan(struct lora_store *self)
{
    // One at a time; the next is ordered when this one was taken.
    uint64_t number = self->scans_ordered + 1;
    if (self->scan_due < number) self->scan_due = number;
    if (self->scans_ordered == self->scans_taken) order_scan(self);
    return number;
}

static void forget_orphan(struct lora_store *self, struct lora_content *content)
{
    bool is_named = content->files > 0 || content->aliases > 0 || content->uploaded;
    if (is_named || content->one_shot || content->pins_count > 0) return;
    if (content->resident) {
        lora_store_doom(self, content, "its file is gone");
    } else {
        lora_table_forget(self->table, content);
    }
}

void lora_want_recount(struct lora_store *self)
{
    for (uint32_t i = 0; i < lora_table_count(self->table); i++) {
        lora_table_at(self->table, i)->files = 0;
    }
    for (uint32_t i = 0; i < lora_files_count(self->files); i++) {
        const struct lora_file *file = lora_files_at(self->files, i);
        if (!file->has_hash) continue;
        struct lora_content *content = lora_table_find_exact(self->table, &file->hash);
        if (content != NULL) content->files += 1;
    }
    // What is forgotten is replaced by one that was looked at already.
    for (uint32_t i = lora_table_count(self->table); i > 0; i--) {
        forget_orphan(self, lora_table_at(self->table, i - 1));
    }
}

static enum progress advance(struct lora_store *self, struct lora_want *want,
                             struct lora_target *target, struct error *error);

static void finish(struct lora_store *self, struct lora_want *want,
                   const struct lora_target *target, const struct error *error)
{
    want->done(self, want, target, error);
    free(want);
}

// Goes on with every want for which waits_for is true.
static void go_on(struct lora_store *self, bool (*waits_for)(const struct lora_want *, uint64_t),
                  uint64_t number)
{
    struct lora_want *list = self->wants;
    self->wants = NULL;
    self->wants_count = 0;
    while (list != NULL) {
        struct lora_want *want = list;
        list = want->next;
        struct lora_target target = {.file = NULL};
        struct error error = {0};
        enum progress progress = WAITS;
        if (waits_for(want, number)) {
            want->scan = 0;
            progress = advance(self, want, &target, &error);
        }
        if (progress == WAITS) {
            want->next = self->wants;
            self->wants = want;
            self->wants_count += 1;
            continue;
        }
        finish(self, want, progress == DONE ? &target : NULL, &error);
    }
}

static bool waits_for_scan(const struct lora_want *want, uint64_t number)
{
    return want->scan != 0 && want->scan <= number;
}

static bool somebody_waits(const struct lora_store *self)
{
    for (const struct lora_want *want = self->wants; want != NULL; want = want->next) {
        if (want->scan != 0) return true;
    }
    for (uint32_t i = 0; i < LORA_SCAN_ASKS_MAX; i++) {
        if (self->scan_asks[i] != NULL) return true;
    }
    return false;
}

void lora_want_on_scan(struct lora_store *self, const struct lora_flight *flight,
                       struct lora_result *result)
{
    struct lora_files_change change = {.added = 0};
    struct error error = result->error;
    assert(flight->scan == self->scans_taken + 1);
    self->scans_taken = flight->scan;
    uint32_t found = result->scan.count;
    uint32_t refused = result->scan.refused;
    uint32_t unwatched = result->scan.unwatched;
    if (error.status == STATUS_OK) {
        lora_files_take(self->files, &result->scan, self->scans_taken, &change, &error);
    }
    if (error.status == STATUS_OK) {
        self->last_scan = (struct lora_scan_facts){.found = found,
                                                   .added = change.added,
                                                   .removed = change.removed,
                                                   .refused = refused,
                                                   .unwatched = unwatched,
                                                   .ms = result->load_ms};
        lora_want_recount(self);
    } else {
        log_event(self->context->log, LOG_WARNING, "scan.failed", "why=%s", error.message);
    }
    if (unwatched > 0) loop_timer_restart(self->rescan, RESCAN_UNWATCHED_MS);
    go_on(self, waits_for_scan, self->scans_taken);
    lora_asks_on_scan(self);
    lora_store_changed(self);
    if (self->scan_due <= self->scans_ordered) return;
    if (somebody_waits(self)) {
        order_scan(self);
    } else {
        loop_timer_restart(self->rescan, RESCAN_AFTER_MS);
    }
}

// ---- loads

static struct lora_flight *find_load(struct lora_store *self, const struct lora_file *file)
{
    for (uint32_t i = 0; i < LORA_FLIGHTS_MAX; i++) {
        struct lora_flight *flight = &self->flights[i];
        if (flight->ticket == 0 || flight->kind != LORA_LOAD) continue;
        if (flight->directory != file->directory) continue;
        if (strcmp(flight->path, file->path) == 0) return flight;
    }
    return NULL;
}

static enum progress start_load(struct lora_store *self, struct lora_want *want,
                                const struct lora_file *file, struct error *error)
{
    struct lora_flight *flight = find_load(self, file);
    if (flight == NULL) {
        struct lora_order order = {.kind = LORA_LOAD,
                                   .directory =
                                       self->config->lora.directories.items[file->directory],
                                   .known = file->has_hash,
                                   .identity = file->identity,
                                   .descriptor = -1,
                                   .second = -1};
        text_set(order.name, sizeof order.name, file->path);
        const struct lora_content *content =
            file->has_hash ? lora_table_find_exact(self->table, &file->hash) : NULL;
        // What is known of the tensors is true of every file with that hash, the rest of one only.
        order.known = content != NULL && lora_identity_equal(&content->identity, &file->identity);
        if (order.known) order.facts = content->facts;
        if (lora_store_order(self, &order, NULL, &flight, error) != STATUS_OK) {
            return FAILED;
        }
        flight->directory = file->directory;
        text_set(flight->path, sizeof flight->path, file->path);
    }
    want->ticket = flight->ticket;
    return WAITS;
}

static void note_identity(struct lora_store *self, const struct lora_flight *flight,
                          const struct lora_result *result)
{
    struct lora_file *file = lora_files_find_path(self->files, flight->directory, flight->path);
    if (file == NULL) return;
    file->identity = result->identity;
    file->has_hash = true;
    file->hash = result->facts.hash;
}

void lora_want_on_load(struct lora_store *self, const struct lora_flight *flight,
                       struct lora_result *result)
{
    struct lora_content *content = NULL;
    struct error error = result->error;
    const uint64_t ticket = flight->ticket;
    if (error.status == STATUS_OK) {
        const struct lora_adoption how = {.name = flight->path};
        lora_store_adopt(self, result, &how, &content, &error);
        note_identity(self, flight, result);
    }
    if (content != NULL) lora_table_hold(self->table, content);
    lora_want_recount(self);
    struct lora_want **at = &self->wants;
    struct lora_want *ready = NULL;
    while (*at != NULL) {
        struct lora_want *want = *at;
        if (want->ticket != ticket) {
            at = &want->next;
            continue;
        }
        *at = want->next;
        self->wants_count -= 1;
        want->next = ready;
        ready = want;
    }
    while (ready != NULL) {
        struct lora_want *want = ready;
        ready = want->next;
        struct lora_target target = {
            .file = lora_files_find_path(self->files, flight->directory, flight->path),
            .content = content,
            .loaded = true};
        finish(self, want, content != NULL ? &target : NULL, &error);
    }
    if (content != NULL) lora_store_release(self, content);
    lora_store_changed(self);
}

// ---- looking up

// A file that was written in place is not the content any more that was read from it.
static void drop_if_changed(struct lora_store *self, struct lora_content *content)
{
    struct lora_identity now;
    if (!content->resident || content->in_memory) return;
    if (lora_scan_identify(content->file, &now) == STATUS_OK &&
        lora_identity_equal(&now, &content->identity)) {
        return;
    }
    struct lora_file *file = NULL;
    while ((file = lora_files_find_hash(self->files, &content->facts.hash)) != NULL) {
        file->has_hash = false;
    }
    lora_store_doom(self, content, "its file was written in place");
    lora_want_recount(self);
}

static enum status find_by_name(struct lora_store *self, const char *reference,
                                struct lora_target *out, struct error *error)
{
    enum status status =
        lora_files_find(self->files, reference, LORA_FILES_PATH, &out->file, error);
    if (status != STATUS_OK || out->file != NULL) return status;
    const struct lora_alias *alias = lora_table_find_name(self->table, reference);
    if (alias != NULL) {
        out->content = alias->content;
        return STATUS_OK;
    }
    return lora_files_find(self->files, reference, LORA_FILES_NAME, &out->file, error);
}

static enum status find_target(struct lora_store *self, const char *reference,
                               struct lora_target *out, struct error *error)
{
    struct hash hash;
    enum status status = STATUS_OK;
    *out = (struct lora_target){.file = NULL};
    if (hash_from_hex(reference, &hash)) {
        out->content = lora_table_find(self->table, &hash);
    } else {
        status = find_by_name(self, reference, out, error);
    }
    if (status != STATUS_OK) return status;
    if (out->file != NULL && out->file->has_hash) {
        out->content = lora_table_find_exact(self->table, &out->file->hash);
    }
    if (out->content != NULL && out->file == NULL && out->content->files > 0) {
        out->file = lora_files_find_hash(self->files, &out->content->facts.hash);
    }
    return STATUS_OK;
}

static enum progress fail_unknown(struct lora_store *self, const char *reference,
                                  struct error *error)
{
    char near[192];
    lora_files_resembling(self->files, reference, near, sizeof near);
    for (uint32_t i = 0; near[0] == '\0' && i < lora_table_names(self->table); i++) {
        const char *name = lora_table_name_at(self->table, i)->name;
        if (lora_names_resemble(reference, strlen(reference), name, strlen(name))) {
            snprintf(near, sizeof near, "\"%.180s\"", name);
        }
    }
    error_set(error, STATUS_NOT_FOUND, "LoRA \"%.128s\" is not known here%s%s", reference,
              near[0] != '\0' ? "; there is " : "", near);
    return FAILED;
}

static enum progress wait_for_scan(struct lora_store *self, struct lora_want *want)
{
    want->scanned = true;
    want->scan = lora_want_scan(self);
    return WAITS;
}

// Two files may hold the same tensors in different bytes, and a content has one of them.
static bool is_ready(const struct lora_want *want, const struct lora_target *target)
{
    const struct lora_content *content = target->content;
    if (content == NULL || !content->resident || content->doomed) return false;
    if (!want->exact || content->in_memory || target->file == NULL) return true;
    return lora_identity_equal(&content->identity, &target->file->identity);
}

static enum progress advance(struct lora_store *self, struct lora_want *want,
                             struct lora_target *target, struct error *error)
{
    struct hash hash;
    lora_want_watch(self);
    enum status status = find_target(self, want->reference, target, error);
    bool is_hash = hash_from_hex(want->reference, &hash);
    bool dirty = target->file != NULL && target->file->dirty > self->scans_taken;
    bool found = target->content != NULL || target->file != NULL;
    bool doubtful = status != STATUS_OK || dirty || (!found && !is_hash);
    if (doubtful && !want->scanned) return wait_for_scan(self, want);
    if (status != STATUS_OK) return FAILED;
    if (!found) return fail_unknown(self, want->reference, error);
    if (!want->load) return DONE;
    if (target->content != NULL && target->content->resident) {
        drop_if_changed(self, target->content);
        status = find_target(self, want->reference, target, error);
        if (status != STATUS_OK) return FAILED;
        if (is_ready(want, target)) return DONE;
    }
    if (target->file == NULL) return fail_unknown(self, want->reference, error);
    return start_load(self, want, target->file, error);
}

void lora_want_start(struct lora_store *self, const struct lora_want *want)
{
    assert(want->done != NULL);
    assert(want->reference[0] != '\0');
    struct lora_target target = {.file = NULL};
    struct error error = {0};
    struct lora_want now = *want;
    if (self->wants_count >= LORA_WANTS_MAX) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "%u requests wait for LoRAs already",
                  LORA_WANTS_MAX);
        error.retry_after_ms = 100;
        want->done(self, &now, NULL, &error);
        return;
    }
    enum progress progress = advance(self, &now, &target, &error);
    if (progress != WAITS) {
        now.done(self, &now, progress == DONE ? &target : NULL, &error);
        return;
    }
    struct lora_want *waiting = malloc(sizeof *waiting);
    if (waiting == NULL) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "no memory for one more request");
        now.done(self, &now, NULL, &error);
        return;
    }
    *waiting = now;
    waiting->next = self->wants;
    self->wants = waiting;
    self->wants_count += 1;
}

void lora_want_free_all(struct lora_store *self)
{
    struct error error;
    error_set(&error, STATUS_UNAVAILABLE, "the LoRA store ends");
    while (self->wants != NULL) {
        struct lora_want *want = self->wants;
        self->wants = want->next;
        finish(self, want, NULL, &error);
    }
}
