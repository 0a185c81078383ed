package sfld
