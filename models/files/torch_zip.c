// torch_zip.c - torch files are refused for now.
#include "models/files/torch_zip.h"

enum status torch_zip_list(int descriptor, struct bytes *listing, struct error *error)
{
    (void)descriptor;
    (void)listing;
    return error_set(error, STATUS_UNIMPLEMENTED, "torch files are not read yet");
}

static enum status list(void *context, int descriptor, struct bytes *listing, struct error *error)
{
    (void)context;
    return torch_zip_list(descriptor, listing, error);
}

struct torch_reader torch_reader_in_process(void)
{
    return (struct torch_reader){.list = list};
}
